"""Choices that were measured: the file that `tune` writes and the default follows.

    {"format": 1, "handgrad": "0.1.0", "jax": "0.10.1", "jaxlib": "0.10.1",
     "platform": "cpu", "device_kind": "cpu",
     "convolutions": [
      {"x": [8, 28, 28, 1], "kernel": [5, 5, 1, 6], "dtype": "float32", ...,
       "formulas": {"forward": "taps", "input_gradient": "taps", ...},
       "seconds": {"forward": {"rot180": 0.0012, "taps": 0.0004}, ...}}]}

A convolution is known by all that decides how fast its formulas are: shapes with the
batch, channels last, dtype, windows, groups and precision. A file that is damaged, or
that was measured with other versions or on another kind of device, is reported and
ignored: only speed is lost.
"""

import dataclasses
import json
import operator
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version

from handgrad.convolution.spec import ConvFormulas, ConvSpec
from handgrad.rules import RULES
from handgrad.windows import Window

ENVIRONMENT = "HANDGRAD_TUNED"
_FORMAT = 1
# What `jax.lax.platform_dependent` calls a platform, where JAX has another name for it.
_LOWERED = {"gpu": ("cuda", "rocm")}

Seconds = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one convolution.

    Attributes:
      formulas: the choice.
      seconds: direction -> formula -> seconds of one call.
    """

    formulas: ConvFormulas
    seconds: Seconds

    def because(self, direction: str, default: str) -> str:
        """Why this direction's formula stands in the place of `default`."""
        seconds = self.seconds.get(direction, {})
        name = getattr(self.formulas, direction)
        if name == default or not {name, default} <= seconds.keys():
            return "tuned: measured on this machine"
        ratio = seconds[default] / seconds[name]
        return (
            f"tuned: measured on this machine, {ratio:.3g} times faster than {default}"
        )


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a file holds.

    Attributes:
      platform: JAX's name of the platform that was measured.
      convolutions: what was measured, by `key`.
    """

    platform: str = ""
    convolutions: Mapping[str, Measured] = dataclasses.field(default_factory=dict)

    @property
    def lowered(self) -> tuple[str, ...]:
        """The names that lowering has for the platform."""
        if not self.convolutions:
            return ()
        return _LOWERED.get(self.platform, (self.platform,))


def key(x_shape: Sequence[int], kernel_shape: Sequence[int], spec: ConvSpec) -> str:
    """A convolution's name in the file: all that decides the speed, as JSON.

    Args:
      x_shape: [N, H, W, C].
      kernel_shape: [K, L, C/G, O].
      spec: the static description.
    """
    windows, dtype = spec.windows, jnp.dtype(spec.dtype)
    result = jnp.dtype(spec.preferred_element_type or dtype)
    return json.dumps(
        {
            "x": list(x_shape),
            "kernel": list(kernel_shape),
            "dtype": str(dtype),
            "strides": [w.stride for w in windows],
            "padding": [(w.low, w.high) for w in windows],
            "input_dilation": [w.input_dilation for w in windows],
            "kernel_dilation": [w.dilation for w in windows],
            "feature_group_count": spec.feature_group_count,
            "precision": _precision(spec.precision),
            "preferred_element_type": None if result == dtype else str(result),
        }
    )


def _precision(value: Any) -> list[str] | None:
    """One name for each operand: "highest" is `lax.Precision.HIGHEST` for both."""
    if value is None:
        return None
    pair = value if isinstance(value, tuple | list) else (value, value)
    return [str(each).lower() for each in pair]


def find(
    x_shape: Sequence[int], kernel_shape: Sequence[int], spec: ConvSpec, platform: str
) -> Measured | None:
    """What was measured of a convolution on a platform, under any of its names."""
    tuned = followed()
    if platform not in (tuned.platform, *tuned.lowered):
        return None
    return tuned.convolutions.get(key(x_shape, kernel_shape, spec))


def platforms() -> tuple[str, ...]:
    """The platforms, as lowering names them, that a followed file speaks of."""
    return followed().lowered


_lock = threading.Lock()
_current: Tuned | None = None  # None until a choice is asked for


def followed() -> Tuned:
    """What is followed; the first call reads the file that the environment names."""
    global _current
    if _current is not None:
        return _current
    reason = ""
    with _lock:
        if _current is None:
            path = os.environ.get(ENVIRONMENT)
            _current, reason = _read(Path(path)) if path else (Tuned(), "")
        tuned = _current
    _report(reason)
    return tuned


def load_tuned(path: str | os.PathLike[str] | None) -> int:
    """Makes `implementation=None` follow the choices that `tune` saved.

    They take the place of those that an earlier call or the environment variable
    HANDGRAD_TUNED loaded; that variable is read when the first convolution is traced.
    Convolutions that the file does not know keep handgrad's own choice.
    `jax.clear_caches` is called where the choices change, so that jitted functions
    follow them from their next call; what was compiled ahead of time stays as it is.

    A file that is missing or damaged, or that was measured with another version of
    JAX or handgrad or on another kind of device, is reported by a warning and ignored.
    JAX calls every CPU "cpu": keep a file for each kind of machine.

    Args:
      path: the file; `None` forgets all measured choices.

    Returns:
      For how many convolutions there is a measured choice now.

    Example:
      >>> import handgrad
      >>> handgrad.load_tuned(None)
      0
    """
    global _current
    tuned, reason = (Tuned(), "") if path is None else _read(Path(path))
    with _lock:
        before, _current = _current, tuned
    if tuned != (before or Tuned()):
        jax.clear_caches()
    _report(reason)
    return len(tuned.convolutions)


def _report(reason: str) -> None:
    if reason:
        warnings.warn(f"handgrad: {reason}; it is ignored", stacklevel=3)


def _read(path: Path) -> tuple[Tuned, str]:
    """What a file holds, or nothing and the reason."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for name, here in environment().items():
            if content[name] != here:
                return Tuned(), (
                    f"{path}: measured with {name} {content[name]!r}, this is {here!r}"
                )
        measured = dict(_parse(entry) for entry in content["convolutions"])
        return Tuned(content["platform"], measured), ""
    except OSError as error:
        return Tuned(), f"{path}: cannot be read ({error.strerror})"
    # Whatever is wrong with a file, the op that wanted to follow it goes on.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return Tuned(), f"{path}: not a file of handgrad.tune's ({what})"


def environment() -> dict[str, Any]:
    """What a measurement depends on beside the convolution: the file's head."""
    import handgrad  # which is complete by now, and knows its version

    device = jax.local_devices()[0]
    return {
        "format": _FORMAT,
        "handgrad": handgrad.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "platform": device.platform,
        "device_kind": device.device_kind,
    }


def _parse(entry: Mapping[str, Any]) -> tuple[str, Measured]:
    """An entry's key and value; raises whatever it meets where something is wrong."""
    x, kernel = _integers(entry["x"]), _integers(entry["kernel"])
    windows = zip(
        x[1:-1],
        kernel[:-2],
        _integers(entry["strides"]),
        [_integers(pair) for pair in entry["padding"]],
        _integers(entry["kernel_dilation"]),
        _integers(entry["input_dilation"]),
        strict=True,
    )
    preferred = entry["preferred_element_type"]
    spec = ConvSpec(
        windows=tuple(
            Window(h, k, s, low, high, d, e) for h, k, s, (low, high), d, e in windows
        ),
        feature_group_count=operator.index(entry["feature_group_count"]),
        dtype=jnp.dtype(entry["dtype"]),
        precision=entry["precision"],
        preferred_element_type=preferred and jnp.dtype(preferred),
    )
    formulas = ConvFormulas(**entry["formulas"])
    for name in dataclasses.astuple(formulas):
        reason = RULES["conv"].formulas[name].unsuitable(spec)
        if reason:
            raise ValueError(reason)
    seconds = {
        direction: {name: _positive(s) for name, s in each.items()}
        for direction, each in entry["seconds"].items()
    }
    return key(x, kernel, spec), Measured(formulas, seconds)


def _integers(values: Sequence[Any]) -> list[int]:
    return [operator.index(value) for value in values]


def _positive(value: Any) -> float:
    if not value > 0:
        raise ValueError(f"seconds (={value}) must be positive")
    return float(value)


def save(path: Path, measured: Mapping[str, Measured]) -> None:
    """Writes the file, or adds to one of the same versions and device.

    At every moment there is the old file or the new one, never a part of one.

    Args:
      path: the file; one of other versions is replaced.
      measured: what was measured, by `key`.
    """
    tuned, _ = _read(path)
    entries = {
        name: json.loads(name) | dataclasses.asdict(each)
        for name, each in {**tuned.convolutions, **measured}.items()
    }
    head = [f"{json.dumps(n)}: {json.dumps(v)}" for n, v in environment().items()]
    lines = [f"\n  {json.dumps(entry)}" for entry in entries.values()]
    body = f'"convolutions": [{",".join(lines)}\n ]'
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write("{" + ",\n ".join([*head, body]) + "\n}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
