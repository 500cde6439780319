"""What a case is, and how its numbers are made."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Arguments that every example shares: they have no batch dimension.
PARAMETERS = frozenset(
    {"kernel", "rhs", "bias", "scale", "mean", "variance", "negative_slope", "key"}
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """An array argument: its shape, and how numbers of that shape are made."""

    shape: tuple[int, ...]
    make: Callable[[np.random.Generator, tuple[int, ...], Any], np.ndarray]

    def __call__(self, random: np.random.Generator, dtype: Any) -> np.ndarray:
        """Returns the array, in this dtype where it holds real numbers."""
        return self.make(random, self.shape, dtype)


def normal(*shape: int, scale: float = 1.0) -> Sample:
    """Normally distributed numbers."""
    return Sample(
        shape,
        lambda random, shape, dtype: (scale * random.standard_normal(shape)).astype(
            dtype
        ),
    )


def tied(*shape: int) -> Sample:
    """Small whole numbers: most windows hold their maximum more than once."""
    return Sample(
        shape, lambda random, shape, dtype: random.integers(-1, 2, shape).astype(dtype)
    )


def constant(*shape: int, value: float = 0.0) -> Sample:
    """One number everywhere."""
    return Sample(shape, lambda random, shape, dtype: np.full(shape, value, dtype))


def classes(count: int, *shape: int) -> Sample:
    """Integer labels below `count`, whatever the dtype of the other arrays."""
    return Sample(
        shape,
        lambda random, shape, dtype: random.integers(0, count, shape).astype(np.int32),
    )


def one_hot(*shape: int) -> Sample:
    """One-hot labels along the last axis."""
    return Sample(
        shape,
        lambda random, shape, dtype: np.eye(shape[-1], dtype=dtype)[
            random.integers(0, shape[-1], shape[:-1])
        ],
    )


def uniform(*shape: int) -> Sample:
    """Numbers between 0 and 1."""
    return Sample(
        shape, lambda random, shape, dtype: random.uniform(size=shape).astype(dtype)
    )


def key() -> Sample:
    """The data of a key of `jax.random`."""
    return Sample(
        (2,),
        lambda random, shape, dtype: random.integers(0, 2**32, shape, dtype=np.uint32),
    )


@dataclasses.dataclass(frozen=True, eq=False)  # itself is its identity
class Case:
    """One named call of an op.

    Attributes:
      rule: the op's public name.
      name: what the case is, unique within the rule.
      samples: makes each array argument, in the op's order.
      options: the op's other arguments.
      network: the network that the case is a layer of; its time is worth measuring.
      kinked: whether the inputs lie on kinks, where difference quotients say nothing.
    """

    rule: str
    name: str
    samples: Mapping[str, Sample]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: str | None = None
    kinked: bool = False

    def __str__(self) -> str:
        """`rule: name`, as tables and test names show it."""
        return f"{self.rule}: {self.name}"

    def arrays(self, dtype: Any, seed: int = 0) -> dict[str, np.ndarray]:
        """Returns the array arguments by name, the same ones for the same seed."""
        random = np.random.default_rng((seed, zlib.crc32(str(self).encode())))
        dtype = jnp.dtype(dtype)
        return {name: make(random, dtype) for name, make in self.samples.items()}

    def function(self, implementation: Any = None) -> Callable[..., jax.Array]:
        """Returns the op as a function of its array arguments, by name.

        Of an op that returns more than its value (indices, say) it is the value.
        """
        import handgrad

        op = functools.partial(
            getattr(handgrad, self.rule), **self.options, implementation=implementation
        )

        def value(**arrays):
            y = op(**arrays)
            return y[0] if isinstance(y, tuple) else y

        return value

    def positional(self, implementation: Any = None) -> Callable[..., jax.Array]:
        """Returns the op as a function of its array arguments, in their order."""
        function = self.function(implementation)

        def call(*arrays: jax.Array) -> jax.Array:
            return function(**dict(zip(self.samples, arrays, strict=True)))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [inspect.Parameter(name, kind) for name in self.samples]
        call.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        call.__name__ = self.rule
        return call

    def with_examples(self, count: int) -> "Case":
        """Returns the case with another batch: every leading dimension is `count`.

        Parameters (kernel, bias, ...) have no batch and stay as they are. It is for a
        case whose batch leads: the whole of a network's layer may be much to check.
        """
        samples = {
            name: sample
            if name in PARAMETERS
            else dataclasses.replace(sample, shape=(count, *sample.shape[1:]))
            for name, sample in self.samples.items()
        }
        return dataclasses.replace(self, samples=samples)
