"""Flax's `nnx` with hand-derived gradients: one line of a model changes.

    -from flax import nnx
    +from handgrad import nnx

All of `flax.nnx` is here. `Conv`, `ConvTranspose`, `Linear`, `BatchNorm`, `LayerNorm`,
`GroupNorm`, `InstanceNorm`, `RMSNorm`, `Dropout`, `max_pool`, `min_pool` and `avg_pool`
are Flax's own with our gradients: the same arguments, parameters, initial values,
checkpoints, results and errors. What ours cannot do, forward mode but for, is computed
as by Flax.

Example:
  >>> import jax.numpy as jnp
  >>> from handgrad import nnx
  >>> layer = nnx.Conv(3, 4, kernel_size=(3, 3), rngs=nnx.Rngs(0))
  >>> layer(jnp.ones((1, 8, 8, 3))).shape
  (1, 8, 8, 4)
"""

import functools

import jax
from flax import nnx
from flax.nnx import *  # noqa: F403
from jax import lax

import handgrad
from handgrad import _flax

max_pool = _flax.max_pool
min_pool = _flax.min_pool
avg_pool = _flax.avg_pool


class Conv(nnx.Conv):
    """`flax.nnx.Conv`, by `handgrad.conv_general_dilated`."""

    __init__ = functools.partialmethod(
        nnx.Conv.__init__, conv_general_dilated=_flax.conv_general_dilated
    )


class ConvTranspose(nnx.ConvTranspose):
    """`flax.nnx.ConvTranspose`, by `handgrad.conv_transpose`."""

    __call__ = _flax.with_our_lax(nnx.ConvTranspose.__call__)


class Linear(nnx.Linear):
    """`flax.nnx.Linear`, by `handgrad.dot_general`."""

    __init__ = functools.partialmethod(
        nnx.Linear.__init__, dot_general=_flax.dot_general
    )


def _value(variable):
    return None if variable is None else variable[...]


def _norm(op, module, x, mask, **options):
    """A norm with the module's parameters, in the dtypes of its `promote_dtype`."""
    names = [name for name in ("scale", "bias") if hasattr(module, name)]
    x, *parameters = module.promote_dtype(
        (x, *(_value(getattr(module, name)) for name in names)), dtype=module.dtype
    )
    return _flax.norm(
        op,
        x,
        *parameters,
        dtype=module.dtype,
        mask=mask,
        epsilon=module.epsilon,
        **options,
    )


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, by `handgrad.batch_norm`."""

    def __call__(
        self,
        x,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ):
        """Normalizes by the statistics of the batch or by the running averages."""
        average = use_running_average
        if average is None:
            average = self.use_running_average
        axes = _flax.axes(self.axis, x.ndim) or ()
        if (
            average is None
            or not _flax.takes(self, x, mask)
            or [x.shape[i] for i in axes] != [self.num_features]
        ):
            return super().__call__(x, use_running_average, mask=mask)
        x, mean, var, scale, bias = self.promote_dtype(
            (x, self.mean[...], self.var[...], _value(self.scale), _value(self.bias)),
            dtype=self.dtype,
        )
        y, *statistics = _flax.norm(
            handgrad.batch_norm,
            x,
            scale,
            bias,
            *([mean, var] if average else []),
            dtype=self.dtype,
            mask=mask,
            statistics=True,
            axis=axes[0],
            epsilon=self.epsilon,
            axis_name=self.axis_name,
        )
        if not average:
            for running, new in zip((self.mean, self.var), statistics, strict=True):
                old = self.momentum * running[...]
                # As in Flax: no gradient goes by way of a running average.
                running[...] = lax.stop_gradient(old + (1 - self.momentum) * new)
        return y


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, by `handgrad.layer_norm`."""

    def __call__(self, x, *, mask: jax.Array | None = None):
        """Normalizes over the features of each example."""
        axes = _flax.features(self, x, mask) or ()
        if [x.shape[i] for i in axes] != [self.num_features]:
            return super().__call__(x, mask=mask)
        return _norm(handgrad.layer_norm, self, x, mask, axis=axes)


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, by `handgrad.rms_norm`."""

    def __call__(self, x, mask: jax.Array | None = None):
        """Divides by the root mean square of the features of each example."""
        axes = _flax.features(self, x, mask) or ()
        if [x.shape[i] for i in axes] != [self.num_features]:
            return super().__call__(x, mask)
        return _norm(handgrad.rms_norm, self, x, mask, axis=axes)


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, by `handgrad.group_norm`."""

    def __call__(self, x, *, mask: jax.Array | None = None):
        """Normalizes over the pixels and a group of channels of each example."""
        channels = self.num_groups * self.group_size
        if not _flax.takes_groups(self, x, mask) or x.shape[-1] != channels:
            return super().__call__(x, mask=mask)
        return _norm(handgrad.group_norm, self, x, mask, num_groups=self.num_groups)


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, by `handgrad.instance_norm`."""

    def __call__(self, x, *, mask: jax.Array | None = None):
        """Normalizes over the pixels of each channel of each example."""
        fits = _flax.takes_instances(self, x, mask)
        if not fits or x.shape[-1] != self.num_features:
            return super().__call__(x, mask=mask)
        return _norm(handgrad.instance_norm, self, x, mask)


class Dropout(nnx.Dropout):
    """`flax.nnx.Dropout`, by `handgrad.dropout`."""

    def __call__(
        self,
        inputs,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> jax.Array:
        """Sets elements to 0 at random, and scales the others up."""
        keeps = self.deterministic if deterministic is None else deterministic
        key = self.rngs if rngs is None else rngs
        known = isinstance(key, nnx.Rngs | nnx.RngStream | jax.Array)
        if keeps is None or keeps or not known or not _flax.drops(self, inputs):
            return super().__call__(inputs, deterministic=deterministic, rngs=rngs)
        if isinstance(key, nnx.Rngs):
            key = key[self.rng_collection]
        if isinstance(key, nnx.RngStream):
            key = key()
        return handgrad.dropout(
            key, inputs, self.rate, broadcast_axes=tuple(self.broadcast_dims)
        )
