"""`tune`: which formulas are the fastest here, measured for a function's convolutions.

Each direction of each convolution is measured by itself, every suitable formula in
turn with the others. handgrad's own choice stays unless another is faster by more than
the measurement can err.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from handgrad import arguments, windows
from handgrad.convolution import choose, tuned
from handgrad.convolution.geometry import Geometry
from handgrad.convolution.rule import COMPUTE
from handgrad.convolution.spec import ConvFormulas
from handgrad.convolution.tuned import Measured
from handgrad.rules import RULES

_FASTER = 1.03  # so many times, or the choice stays as it was


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution that was measured.

    Attributes:
      geometry: what it is, as in the file.
      default: handgrad's own choice.
      measured: the fastest formulas, and the seconds of all.
      failed: direction -> formula -> why it could not be measured.
    """

    geometry: Mapping[str, Any]
    default: ConvFormulas
    measured: Measured
    failed: Mapping[str, Mapping[str, str]]

    def __str__(self) -> str:
        n = len(self.geometry["strides"])
        plain = (None, 1, [1] * n, [[0, 0]] * n)
        shown = {k: v for k, v in self.geometry.items() if v not in plain}
        lines = [", ".join(f"{name} {value}" for name, value in shown.items())]
        for direction in choose.DIRECTIONS:
            default = getattr(self.default, direction)
            name = getattr(self.measured.formulas, direction)
            chosen = name if name == default else f"{default} -> {name}"
            ranked = sorted((s, n) for n, s in self.measured.seconds[direction].items())
            times = ", ".join(f"{name} {1e3 * s:.3g} ms" for s, name in ranked)
            lines.append(f"  {direction:15}  {chosen:16}  {times}")
            failed = self.failed[direction].items()
            lines += [f"  {'':15}  {name} failed: {why}" for name, why in failed]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `tune` measured; `str` makes it a table.

    Attributes:
      path: the file that holds the choices.
      convolutions: each convolution, in the order in which the function calls them.
    """

    path: Path
    convolutions: tuple[Convolution, ...]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.convolutions), f"saved in {self.path}"])


def tune(
    function: Callable[..., Any],
    *args: Any,
    path: str | os.PathLike[str],
    seconds: float = 0.2,
    rounding: float = 1.0,
) -> Report:
    """Measures which formulas are the fastest for a function's convolutions.

    The function is traced, not run. Each convolution with `implementation=None` that
    it meets is measured in all three directions, so a forward pass says as much as its
    gradient. The fastest formulas are saved after each convolution, beside those that
    the file already holds for these versions and this kind of device; any other file
    at `path` is replaced. At the end `implementation=None` follows the file, as by
    `load_tuned(path)`; the next process does with HANDGRAD_TUNED=path.

    JAX's caches are cleared, before so that each convolution is met even if the
    function was called already, and after so that it follows the choices. Leave the
    machine to the measurement; "gemm" needs K·L times the memory of the image.

    Args:
      function: a model, its loss, or a gradient of it.
      *args: its arguments, as for `jax.jit`: arrays or `jax.ShapeDtypeStruct`s. The
        choice holds for these shapes, the batch included; under `vmap` it holds for
        the shapes of one example.
      path: the JSON file to write.
      seconds: about how long each formula runs for each direction.
      rounding: the most that a formula may round, relative to the others
        (`handgrad.RULES["conv"].formulas[name].rounding`): 4 allows "winograd".

    Returns:
      What was measured; print it.

    Raises:
      ValueError: the function has no convolution with `implementation=None`.
      OSError: the file cannot be written.

    Example:
      >>> import tempfile, jax.numpy as jnp, handgrad
      >>> model = lambda x, kernel: handgrad.conv(x, kernel)
      >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = f"{directory}/tuned.json"
      ...     report = handgrad.tune(model, x, kernel, path=path, seconds=0.001)
      >>> len(report.convolutions)
      1
      >>> handgrad.load_tuned(None)  # forgets it
      0
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    jax.clear_caches()
    with choose.recording() as asked:
        jax.eval_shape(function, *args)
    geometries = {tuned.key(g.x_shape, g.kernel_shape, g.spec): g for g in asked}
    arguments.require(
        bool(geometries),
        "tune",
        "function must compute a convolution with implementation=None, and none was "
        "met while tracing it",
    )
    convolutions = []
    for key, geometry in geometries.items():
        convolutions.append(_measure(geometry, seconds, rounding))
        tuned.save(path, {key: convolutions[-1].measured})
    tuned.load_tuned(path)
    return Report(path, tuple(convolutions))


def _measure(geometry: Geometry, seconds: float, rounding: float) -> Convolution:
    """Measures one convolution; it is alone on one device, whatever the mesh."""
    spec = dataclasses.replace(
        geometry.spec, x_sharding=None, kernel_sharding=None, y_sharding=None
    )
    geometry = dataclasses.replace(geometry, spec=spec)
    names = [
        name
        for name, formula in RULES["conv"].formulas.items()
        if formula.rounding <= rounding and not formula.unsuitable(spec)
    ]
    default = choose.by_table(geometry, jax.default_backend())
    times, failed, fastest = {}, {}, {}
    for direction in choose.DIRECTIONS:
        with jax.enable_x64(jnp.dtype(spec.dtype).itemsize == 8):
            times[direction], failed[direction] = _times(
                direction, geometry, names, seconds
            )
        fastest[direction] = _choose(times[direction], default[direction][0])
    key = tuned.key(geometry.x_shape, geometry.kernel_shape, spec)
    return Convolution(
        geometry=json.loads(key),
        default=ConvFormulas(**{d: name for d, (name, _) in default.items()}),
        measured=Measured(ConvFormulas(**fastest), times),
        failed=failed,
    )


def _choose(times: Mapping[str, float], default: str) -> str:
    """The fastest formula, or the default where that is about as fast."""
    fastest = min(times, key=lambda name: times[name], default=default)
    if default in times and times[default] < _FASTER * times[fastest]:
        return default
    return fastest


def _times(
    direction: str, geometry: Geometry, names: Sequence[str], seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of each formula, and why others have none."""
    from handgrad import measure  # with its list of cases, which only this needs

    arrays = jax.device_put(_arrays(direction, geometry))
    functions, failed = {}, {}
    for name in names:
        everywhere = ("default", ConvFormulas(name, name, name))
        spec = dataclasses.replace(geometry.spec, formulas=(everywhere,))
        function = jax.jit(lambda a, b, spec=spec: COMPUTE[direction](a, b, spec))
        try:
            jax.block_until_ready(function(*arrays))
        # Compilers and devices fail in many ways; another formula will do.
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            functions[name] = function
    times = measure.interleaved(functions, *arrays, seconds=seconds)
    return {name: float(f"{s:.3g}") for name, s in times.items()}, failed


def _arrays(direction: str, geometry: Geometry) -> list[np.ndarray]:
    """Random numbers for the two arrays that the direction computes from."""
    spec = geometry.spec
    pixels = windows.output_shape(spec.windows)
    y = (geometry.x_shape[0], *pixels, geometry.outputs), spec.preferred_element_type
    x, kernel = (geometry.x_shape, None), (geometry.kernel_shape, None)
    two = {
        "forward": (x, kernel),
        "input_gradient": (y, kernel),
        "kernel_gradient": (x, y),
    }
    random = np.random.default_rng(0)
    return [
        random.standard_normal(shape).astype(dtype or spec.dtype)
        for shape, dtype in two[direction]
    ]
