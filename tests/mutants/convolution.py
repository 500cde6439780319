"""Convolutions and dense layers: one right formula each, one wrong setting a mutant."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.mutants.mutant import Mutant, normal, rule, spoiled

NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv(x, kernel, stride=1):
    """A convolution with one zero around the image."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=NUMBERS
    )


def input_gradient(
    dy,
    kernel,
    shape,
    stride=1,
    rotate=(0, 1),
    exchange=True,
    shift=(0, 0),
    stuffing=None,
    channels=slice(None),
):
    """The full convolution of dy, zeros in between, with the kernel turned by 180°."""
    kernel = jnp.flip(kernel, rotate)[:, :, channels]
    kernel = kernel.swapaxes(2, 3) if exchange else kernel
    stuffing = stride if stuffing is None else stuffing
    pads = []
    for h, p, k, by in zip(
        shape[1:3], dy.shape[1:3], kernel.shape, shift, strict=False
    ):
        low = k - 2 + by
        pads.append((low, h + k - 1 - (stuffing * (p - 1) + 1) - low))
    return lax.conv_general_dilated(
        dy,
        kernel,
        (1, 1),
        pads,
        lhs_dilation=(stuffing,) * 2,
        dimension_numbers=NUMBERS,
    )


def kernel_gradient(dy, x, places, stride=1, shift=0, dilation=None):
    """conv(x, dy): the examples are contracted, the error is dilated by the stride."""
    dilation = stride if dilation is None else dilation
    pads = [
        (1 + shift, k - 1 + dilation * (p - 1) - h - shift)
        for h, p, k in zip(x.shape[1:3], dy.shape[1:3], places, strict=False)
    ]
    return lax.conv_general_dilated(
        x, dy, (1, 1), pads, rhs_dilation=(dilation,) * 2,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )  # fmt: skip


def convolution(stride=1, dx=None, dk=None, spoil=lambda dx, dk: (dx, dk)):
    """A convolution whose two gradients have the wrong settings `dx` and `dk`."""

    def backward(dy, y, x, kernel):
        return spoil(
            input_gradient(dy, kernel, x.shape, stride, **dx or {}),
            kernel_gradient(dy, x, kernel.shape, stride, **dk or {}),
        )

    def primal(x, kernel):
        return conv(x, kernel, stride)

    return rule(primal, backward)


def dense(x, kernel, bias):
    return jnp.dot(x, kernel, precision="highest") + bias


def dense_rule(
    dx=lambda dy, x, w: dy @ w.T,
    dw=lambda dy, x, w: x.T @ dy,
    db=lambda dy, x, w: dy.sum(0),
):
    """A dense layer, one of its three gradients given."""
    return rule(
        dense, lambda dy, y, x, w, b: (dx(dy, x, w), dw(dy, x, w), db(dy, x, w))
    )


def biased(db):
    """A bias over the channels of an image."""
    return rule(lambda x, bias: x + bias, lambda dy, y, x, bias: (dy, db(dy)))


IMAGE = (normal(2, 5, 4, 3), normal(3, 3, 3, 2))
SQUARE = (normal(2, 5, 4, 3), normal(3, 3, 3, 3))
STRIDED = (normal(2, 6, 6, 2), normal(3, 3, 2, 3))
LAYER = (normal(6, 4), normal(4, 4), normal(4))
BIAS = (normal(3, 4, 5, 2), normal(2))

_convolution = functools.partial(Mutant, "convolution")
_dense = functools.partial(Mutant, "dense")

RIGHT = {
    "convolution": (convolution(), IMAGE),
    "strided convolution": (convolution(2), STRIDED),
    "dense": (dense_rule(), LAYER),
    "bias": (biased(lambda dy: dy.sum((0, 1, 2))), BIAS),
}

MUTANTS = (
    _convolution("kernel not rotated", convolution(dx={"rotate": ()}), IMAGE),
    _convolution("rotated in rows only", convolution(dx={"rotate": 0}), IMAGE),
    _convolution("rotated in columns only", convolution(dx={"rotate": 1}), IMAGE),
    _convolution(
        "channels swapped",
        convolution(dx={"channels": slice(None, None, -1)}),
        IMAGE,
        hint="axis 3",
    ),
    _convolution(
        "inputs and outputs not exchanged", convolution(dx={"exchange": False}), SQUARE
    ),
    _convolution("padding off by one", convolution(dx={"shift": (1, 1)}), IMAGE),
    _convolution(
        "padding off by one in rows",
        convolution(dx={"shift": (-1, 0)}),
        IMAGE,
        hint="shifted",
    ),
    _convolution("stride forgotten", convolution(2, dx={"stuffing": 1}), STRIDED),
    _convolution(
        "zero-stuffing on the wrong side",
        convolution(2, dx={"shift": (1, 1)}),
        STRIDED,
    ),
    _convolution(
        "kernel gradient flipped",
        convolution(spoil=lambda dx, dk: (dx, dk[::-1, ::-1])),
        IMAGE,
        hint="flipped along axes 0, 1",
    ),
    _convolution(
        "kernel gradient transposed in space",
        convolution(spoil=lambda dx, dk: (dx, dk.swapaxes(0, 1))),
        IMAGE,
        hint="transposed",
    ),
    _convolution(
        "kernel gradient transposed in channels",
        convolution(spoil=lambda dx, dk: (dx, dk.swapaxes(2, 3))),
        SQUARE,
        hint="transposed",
    ),
    _convolution("kernel gradient off by one", convolution(dk={"shift": 1}), IMAGE),
    _convolution(
        "stride forgotten in the kernel gradient",
        convolution(2, dk={"dilation": 1}),
        STRIDED,
    ),
    _convolution(
        "mean over the examples",
        convolution(spoil=lambda dx, dk: (dx, dk / 2)),
        IMAGE,
        hint="1/2 times",
    ),
    _convolution(
        "the last row is left out",
        convolution(spoil=lambda dx, dk: (dx.at[:, -1].set(0), dk)),
        IMAGE,
        hint="last entry along axis 1",
    ),
    _convolution(
        "the first column counts twice",
        convolution(spoil=lambda dx, dk: (dx.at[:, :, 0].mul(2), dk)),
        IMAGE,
        hint="first entry along axis 2",
    ),
    _convolution(
        "the output channels of a group in another order",
        spoiled(
            lambda x, kernel: lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                "SAME",
                dimension_numbers=NUMBERS,
                feature_group_count=2,
            ),
            lambda dx, dk: (dx, jnp.roll(dk, 2, axis=3)),
        ),
        (normal(1, 4, 4, 4), normal(3, 3, 2, 4)),
        hint="axis 3",
    ),
    _convolution(
        "only the first example",
        convolution(spoil=lambda dx, dk: (dx.at[1:].set(0), dk)),
        IMAGE,
        hint="zero",
    ),
    _convolution(
        "wrong sign",
        spoiled(lambda x, kernel: conv(x, kernel), lambda dx, dk: (dx, -dk)),
        IMAGE,
        hint="sign",
    ),
    _dense(
        "one element of 10⁴",
        spoiled(lambda x: jnp.tanh(x), lambda dx: (dx.at[17, 23].add(0.003),)),
        (normal(100, 100),),
        hint="only wrong element of 10000",
    ),
    _dense(
        "kernel gradient transposed",
        dense_rule(dw=lambda dy, x, w: dy.T @ x),
        LAYER,
        hint="transposed",
    ),
    _dense("kernel not transposed", dense_rule(dx=lambda dy, x, w: dy @ w), LAYER),
    _dense(
        "one example is left out",
        dense_rule(dw=lambda dy, x, w: x[1:].T @ dy[1:]),
        LAYER,
    ),
    _dense(
        "factor 2", dense_rule(dx=lambda dy, x, w: 2 * dy @ w.T), LAYER, hint="2 times"
    ),
    _dense(
        "gradients of two equal shapes exchanged",
        spoiled(lambda a, b: a * b + jnp.sin(b), lambda da, db: (db, da)),
        (normal(3, 4), normal(3, 4, seed=1)),
    ),
    _dense(
        "bias: mean instead of sum",
        dense_rule(db=lambda dy, x, w: dy.mean(0)),
        LAYER,
        hint="1/6 times",
    ),
    _dense("bias summed over too few axes", biased(lambda dy: dy.sum((0, 1))[0]), BIAS),
    _dense("bias of the first example", biased(lambda dy: dy[0].sum((0, 1))), BIAS),
    _dense(
        "accumulated in bfloat16",
        dense_rule(
            dw=lambda dy, x, w: (
                x.T.astype(jnp.bfloat16) @ dy.astype(jnp.bfloat16)
            ).astype(x.dtype)
        ),
        LAYER,
        hint="bfloat16",
    ),
    _dense(
        "complex: conjugated",
        rule(lambda x, w: x * w, lambda dy, y, x, w: (dy * jnp.conj(w), dy * x)),
        (
            normal(5) + 1j * normal(5, seed=1),
            (normal(5, seed=2) * (1 + 1j)).astype(np.complex64),
        ),
    ),
    _dense(
        "complex: real part only",
        rule(lambda x, w: x * w, lambda dy, y, x, w: (dy * w, jnp.real(dy * x) + 0j)),
        (
            normal(5) + 1j * normal(5, seed=1),
            (normal(5, seed=2) * (1 + 1j)).astype(np.complex64),
        ),
    ),
)
