"""Flax's `linen` with hand-derived gradients: one line of a model changes.

    -import flax.linen as nn
    +import handgrad.linen as nn

All of `flax.linen` is here. `Conv`, `ConvTranspose`, `ConvLocal`, `Dense`, `BatchNorm`,
`LayerNorm`, `GroupNorm`, `InstanceNorm`, `RMSNorm`, `Dropout`, `max_pool`, `min_pool`
and `avg_pool` are Flax's own with our gradients: the same arguments, parameters, initial
values, checkpoints, results and errors. What ours cannot do, forward mode but for, is
computed as by Flax.

Example:
  >>> import jax, jax.numpy as jnp
  >>> import handgrad.linen as nn
  >>> model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.BatchNorm(True)])
  >>> variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
  >>> jax.tree.map(jnp.shape, variables["params"])
  {'layers_0': {'bias': (4,), 'kernel': (3, 3, 3, 4)},
   'layers_2': {'bias': (4,), 'scale': (4,)}}
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.linen import *  # noqa: F403

import handgrad
from handgrad import _flax

max_pool = _flax.max_pool
min_pool = _flax.min_pool
avg_pool = _flax.avg_pool


class Conv(linen.Conv):
    """`flax.linen.Conv`, by `handgrad.conv_general_dilated`."""

    conv_general_dilated: Any = _flax.conv_general_dilated


class ConvLocal(linen.ConvLocal):
    """`flax.linen.ConvLocal`, by `handgrad.im2col`."""

    __call__ = _flax.with_our_lax(linen.ConvLocal.__call__)


class ConvTranspose(linen.ConvTranspose):
    """`flax.linen.ConvTranspose`, by `handgrad.conv_transpose`."""

    __call__ = _flax.with_our_lax(linen.ConvTranspose.__call__)


class Dense(linen.Dense):
    """`flax.linen.Dense`, by `handgrad.dot_general`."""

    dot_general: Any = _flax.dot_general


def _parameters(module: Any, *sizes: int) -> tuple[jax.Array | None, jax.Array | None]:
    """Scale and bias, made by Flax."""
    scale = bias = None
    if module.use_scale:
        scale = module.param("scale", module.scale_init, [*sizes], module.param_dtype)
    if getattr(module, "use_bias", False):
        bias = module.param("bias", module.bias_init, [*sizes], module.param_dtype)
    return scale, bias


class BatchNorm(linen.BatchNorm):
    """`flax.linen.BatchNorm`, by `handgrad.batch_norm`."""

    @linen.compact
    def __call__(
        self,
        x,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ):
        """Normalizes by the statistics of the batch or by the running averages."""
        average = linen.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        axes = _flax.axes(self.axis, x.ndim) or ()
        if len(axes) != 1 or not _flax.takes(self, x, mask):
            call = _flax.stock(linen.BatchNorm.__call__)
            return call(self, x, use_running_average, mask=mask)
        size = x.shape[axes[0]]
        mean = self.variable("batch_stats", "mean", jnp.zeros, [size], jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, [size], jnp.float32)
        y, *statistics = _flax.norm(
            handgrad.batch_norm,
            x,
            *_parameters(self, size),
            *([mean.value, var.value] if average else []),
            dtype=self.dtype,
            mask=mask,
            statistics=True,
            axis=axes[0],
            epsilon=self.epsilon,
            axis_name=None if self.is_initializing() else self.axis_name,
        )
        if not average and not self.is_initializing():
            for running, new in zip((mean, var), statistics, strict=True):
                old = running.value
                running.value = self.momentum * old + (1 - self.momentum) * new
        return y


class LayerNorm(linen.LayerNorm):
    """`flax.linen.LayerNorm`, by `handgrad.layer_norm`."""

    @linen.compact
    def __call__(self, x, *, mask: jax.Array | None = None):
        """Normalizes over the features of each example."""
        axes = _flax.features(self, x, mask)
        if axes is None:
            return _flax.stock(linen.LayerNorm.__call__)(self, x, mask=mask)
        return _flax.norm(
            handgrad.layer_norm,
            x,
            *_parameters(self, *(x.shape[i] for i in axes)),
            dtype=self.dtype,
            mask=mask,
            axis=axes,
            epsilon=self.epsilon,
        )


class RMSNorm(linen.RMSNorm):
    """`flax.linen.RMSNorm`, by `handgrad.rms_norm`."""

    @linen.compact
    def __call__(self, x, *, mask: jax.Array | None = None):
        """Divides by the root mean square of the features of each example."""
        axes = _flax.features(self, x, mask)
        if axes is None:
            return _flax.stock(linen.RMSNorm.__call__)(self, x, mask=mask)
        scale, _ = _parameters(self, *(x.shape[i] for i in axes))
        return _flax.norm(
            handgrad.rms_norm,
            x,
            scale,
            dtype=self.dtype,
            mask=mask,
            axis=axes,
            epsilon=self.epsilon,
        )


class GroupNorm(linen.GroupNorm):
    """`flax.linen.GroupNorm`, by `handgrad.group_norm`."""

    @linen.compact
    def __call__(self, x, *, mask: jax.Array | None = None):
        """Normalizes over the pixels and a group of channels of each example."""
        given = [n for n in (self.num_groups, self.group_size) if n is not None]
        fits = [isinstance(n, int) and n > 0 and not x.shape[-1] % n for n in given]
        if fits != [True] or not _flax.takes_groups(self, x, mask):
            return _flax.stock(linen.GroupNorm.__call__)(self, x, mask=mask)
        return _flax.norm(
            handgrad.group_norm,
            x,
            *_parameters(self, x.shape[-1]),
            dtype=self.dtype,
            mask=mask,
            num_groups=self.num_groups,
            group_size=self.group_size,
            epsilon=self.epsilon,
        )


class InstanceNorm(linen.InstanceNorm):
    """`flax.linen.InstanceNorm`, by `handgrad.instance_norm`."""

    @linen.compact
    def __call__(self, x, *, mask: jax.Array | None = None):
        """Normalizes over the pixels of each channel of each example."""
        if not _flax.takes_instances(self, x, mask):
            return _flax.stock(linen.InstanceNorm.__call__)(self, x, mask=mask)
        return _flax.norm(
            handgrad.instance_norm,
            x,
            *_parameters(self, x.shape[-1]),
            dtype=self.dtype,
            mask=mask,
            epsilon=self.epsilon,
        )


class Dropout(linen.Dropout):
    """`flax.linen.Dropout`, by `handgrad.dropout`."""

    @linen.compact
    def __call__(
        self,
        inputs,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ):
        """Sets elements to 0 at random, and scales the others up."""
        keeps = linen.merge_param("deterministic", self.deterministic, deterministic)
        if keeps or not _flax.drops(self, inputs):
            call = _flax.stock(linen.Dropout.__call__)
            return call(self, inputs, deterministic, rng)
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return handgrad.dropout(
            key, inputs, self.rate, broadcast_axes=tuple(self.broadcast_dims)
        )
