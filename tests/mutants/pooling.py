"""Pools: where the error goes, and what it is divided by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.mutants.mutant import Mutant, normal, rule, spoiled, tied

K = 2


def blocks(x):
    """[n h w c] as [n p q (2·2) c]: the windows of a 2×2/2 pool."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // K, K, w // K, K, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // K, w // K, K * K, c)


def unblock(windows):
    n, p, q, _, c = windows.shape
    windows = windows.reshape(n, p, q, K, K, c).transpose(0, 1, 3, 2, 4, 5)
    return windows.reshape(n, p * K, q * K, c)


def max_pool(x):
    return lax.reduce_window(
        x, np.array(-np.inf, x.dtype), lax.max, (1, K, K, 1), (1, K, K, 1), "VALID"
    )


def pool_by(share):
    """A max-pool whose window hands out its error as `share` says of its maxima."""

    def backward(dy, y, x):
        largest = blocks(x) == y[..., None, :]
        return (unblock(share(largest).astype(x.dtype) * dy[..., None, :]),)

    return rule(max_pool, backward)


def one_hot(index):
    return jax.nn.one_hot(index, K * K, axis=-2)


def first(largest):
    return one_hot(jnp.argmax(largest, axis=-2))


def last(largest):
    return one_hot(K * K - 1 - jnp.argmax(largest[..., ::-1, :], axis=-2))


def average(x, window=3, stride=1, padding="VALID"):
    return lax.reduce_window(
        x, np.array(0, x.dtype), lax.add, (1, window, window, 1),
        (1, stride, stride, 1), padding,
    ) / (window * window)  # fmt: skip


def counted(x):
    """A 3×3/1 mean of the real pixels."""
    ones = jnp.ones_like(x)
    return average(x, padding="SAME") / average(ones, padding="SAME")


def spread(dy, stride=1, window=3, combine=lax.add):
    """Each error to all places of its window; overlaps are combined."""
    low = np.array(0, dy.dtype)
    pads = [(0, 0, 0), *[(window - 1, window - 1, stride - 1)] * 2, (0, 0, 0)]
    return lax.reduce_window(
        lax.pad(dy, low, pads), low, combine, (1, window, window, 1), (1, 1, 1, 1),
        "VALID",
    )  # fmt: skip


def overlapping(x):
    return average(x)


def two_by_two(x):
    return average(x, 2, 2)


def mean_by(back, primal=overlapping):
    return rule(primal, lambda dy, y, x: (back(dy, x),))


IMAGE, TIED = (normal(2, 6, 4, 2),), (tied(2, 6, 4, 2),)
_max = functools.partial(Mutant, "max-pool")
_mean = functools.partial(Mutant, "mean-pool")

RIGHT = {
    "max-pool": (pool_by(first), IMAGE),
    "mean-pool": (mean_by(lambda dy, x: spread(dy) / 9), IMAGE),
    "mean-pool of blocks": (
        mean_by(lambda dy, x: spread(dy, 2, 2) / 4, two_by_two),
        IMAGE,
    ),
}
MUTANTS = (
    _max(
        "tie shared",
        pool_by(lambda largest: largest / largest.sum(-2, keepdims=True)),
        TIED,
        reference=max_pool,
    ),
    _max("every tie takes all", pool_by(lambda largest: largest), TIED),
    _max("tie to the last", pool_by(last), TIED, reference=max_pool),
    _max(
        "to the smallest",
        rule(
            max_pool,
            lambda dy, y, x: (
                unblock(one_hot(jnp.argmin(blocks(x), -2)) * dy[..., None, :]),
            ),
        ),
        IMAGE,
    ),
    _max(
        "shifted by one pixel",
        spoiled(max_pool, lambda dx: (jnp.roll(dx, 1, axis=2),)),
        IMAGE,
        hint="shifted by 1 in a circle along axis 2",
    ),
    _max(
        "windows turned",
        spoiled(max_pool, lambda dx: (unblock(blocks(dx)[..., ::-1, :]),)),
        IMAGE,
    ),
    _max(
        "spread as a mean",
        rule(max_pool, lambda dy, y, x: (spread(dy, 2, 2) / 4,)),
        IMAGE,
    ),
    _mean(
        "missing 1/s²",
        mean_by(lambda dy, x: spread(dy, 2, 2), two_by_two),
        IMAGE,
        hint="4 times",
    ),
    _mean(
        "1/s instead of 1/s²",
        mean_by(lambda dy, x: spread(dy, 2, 2) / 2, two_by_two),
        IMAGE,
        hint="2 times",
    ),
    _mean(
        "overlaps overwritten instead of added",
        mean_by(
            lambda dy, x: jnp.pad(dy, ((0, 0), (2, 0), (2, 0), (0, 0)), mode="edge") / 9
        ),
        IMAGE,
    ),
    _mean(
        "the largest of overlapping errors",
        mean_by(lambda dy, x: spread(dy, combine=lax.max) / 9),
        IMAGE,
    ),
    _mean(
        "padding counted in the backward pass only",
        mean_by(lambda dy, x: spread(dy)[:, 1:-1, 1:-1] / 9, counted),
        IMAGE,
    ),
    _mean(
        "one row wrong at the border only",
        spoiled(overlapping, lambda dx: (dx.at[:, 0].mul(1.5),)),
        IMAGE,
        hint="first entry along axis 1",
    ),
    _mean(
        "left-over pixels take an error",
        spoiled(
            lambda x: average(x[:, :, :4], 2, 2),
            lambda dx: (dx.at[:, :, 4].set(dx[:, :, 3]),),
        ),
        (normal(2, 4, 5, 2),),
        hint="last entry along axis 2",
    ),
    _mean(
        "only the middle pixel",
        mean_by(lambda dy, x: jnp.pad(dy, ((0, 0), (1, 1), (1, 1), (0, 0)))),
        IMAGE,
    ),
)
