"""A wrong copy of a rule must fail the very check that the right one passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handgrad import (
    _dense,
    _dot_general,
    buffers,
    cases,
    elementwise,
    local_response,
    measure,
    reductions,
    windows,
)
from handgrad.activation import log_sum_exp
from handgrad.convolution import (
    block_diagonal,
    blocks,
    gemm,
    mec,
    narrow,
    phases,
    places,
    rot180,
    rotations,
    slices,
    transposed,
    winograd,
)
from handgrad.loss import cross_entropy, distance
from handgrad.pooling import adaptive, average, power, unpool, upsample
from handgrad.pooling import max as maximum


def failures(rule, formula, names):
    """How many of the rule's errors do not pass, over its cases."""
    chosen = [case for case in cases.of(rule) if case.name in names]
    assert len(chosen) == len(names)
    return sum(
        not error.passed for case in chosen for error in measure.errors(case, formula)
    )


def keep_kernel_unturned(monkeypatch):
    monkeypatch.setattr(rot180.lax, "rev", lambda x, axes: x)


def shift_padding(monkeypatch):
    right = rot180._convolve

    def wrong(x, kernel, *, padding, **options):
        shifted = [(low + 1, high - 1) for low, high in padding]
        return right(x, kernel, padding=shifted, **options)

    monkeypatch.setattr(rot180, "_convolve", wrong)


def shift_kernel_gradient(monkeypatch):
    right = rot180.kernel_gradient
    wrong = lambda *args: jnp.roll(right(*args), 1, axis=0)
    monkeypatch.setattr(rot180, "kernel_gradient", wrong)


def drop_a_term(monkeypatch):
    right = windows.spread

    def wrong(piece, described):
        first = (0,) * len(described)
        dropping = lambda *k: piece(*k) * (0 if k == first else 1)
        return right(dropping, described)

    monkeypatch.setattr(windows, "spread", wrong)


def misplace_a_tile(monkeypatch):
    right = windows.from_tiles

    def wrong(tiles, dimensions):
        return right(jnp.roll(tiles, 1, -1 - 2 * dimensions), dimensions)

    monkeypatch.setattr(windows, "from_tiles", wrong)


def turn_the_tiles(monkeypatch):
    right = windows.to_tiles
    wrong = lambda x, sizes: jnp.flip(right(x, sizes), -2)
    monkeypatch.setattr(windows, "to_tiles", wrong)


def drop_a_shift(monkeypatch):
    right = upsample._axis

    def wrong(w):
        axis = right(w)
        first = next(iter(axis.places))
        places = axis.places | {first: np.full_like(axis.places[first], -1)}
        return dataclasses.replace(axis, places=places)

    monkeypatch.setattr(upsample, "_axis", wrong)


def misplace_the_pixels_windows(monkeypatch):
    right = windows.Window.transposed.fget

    def wrong(w):
        turned = right(w)
        return dataclasses.replace(turned, low=turned.low + 1, high=turned.high - 1)

    monkeypatch.setattr(windows.Window, "transposed", property(wrong))


def forget_the_share(monkeypatch):
    right = average.AverageSpec.share
    wrong = lambda spec, dy: right(spec, dy) * 1.01
    monkeypatch.setattr(average.AverageSpec, "share", wrong)


def last_tie_wins(monkeypatch):
    """The right value; of several maxima the last takes the error."""
    right = maximum._first_place
    wrong = lambda views, offsets, spec: right(views[::-1], offsets[::-1], spec)
    monkeypatch.setattr(maximum, "_first_place", wrong)


def forget_the_count(monkeypatch):
    right = average.AverageSpec.mean
    wrong = lambda spec, total: right(spec, total) * 1.01
    monkeypatch.setattr(average.AverageSpec, "mean", wrong)


def shift_the_windows(monkeypatch):
    """The error handed to pixels one further on than those of the window."""
    right = upsample._axis
    wrong = lambda w: right(dataclasses.replace(w, low=w.low + 1, high=w.high - 1))
    monkeypatch.setattr(upsample, "_axis", wrong)


def forget_the_power(monkeypatch):
    """The windows' norms to the power e in place of e − 1: dropped by one."""
    right = power._power
    wrong = lambda x, e: right(x, e + 1 if e == 1 else e)
    monkeypatch.setattr(power, "_power", wrong)


def gather_from_the_next_place(monkeypatch):
    right = unpool.windows.places

    def wrong(described):
        first, *rest = right(described)
        return [*rest, first]

    monkeypatch.setattr(unpool.windows, "places", wrong)


def count_a_bin_short(monkeypatch):
    """The first bin's error shared out among one pixel less than it has."""
    right = adaptive._shares

    def wrong(x, bins, axis):
        (start, stop), *rest = bins
        return right(x, [(start + 1, stop), *rest], axis)

    monkeypatch.setattr(adaptive, "_shares", wrong)


def exchange_rows_and_columns(monkeypatch):
    """The offset in a bin read column by column."""
    right = adaptive._units
    calls = []

    def wrong(sizes):
        calls.append(sizes)
        return right(sizes) if len(calls) % 2 else right(sizes[::-1])[::-1]

    monkeypatch.setattr(adaptive, "_units", wrong)


def spoil_one_entry(monkeypatch):
    right = _dense._contract

    def wrong(*args, **options):
        y = right(*args, **options)
        return y.at[3, 5].add(0.01) if "out_sharding" in options else y

    monkeypatch.setattr(_dense, "_contract", wrong)


def forget_the_label(monkeypatch):
    right = cross_entropy._probabilities
    wrong = lambda *a: right(*a) * 1.001
    monkeypatch.setattr(cross_entropy, "_probabilities", wrong)


def mistake_a_logarithm(monkeypatch):
    right = distance._log
    monkeypatch.setattr(distance, "_log", lambda t: right(t) * 1.001)


def forget_a_mean(monkeypatch):
    right = reductions.two_totals

    def wrong(*args):
        first, second = right(*args)
        return first, second * 0.999

    monkeypatch.setattr(reductions, "two_totals", wrong)


def spoil_a_cotangent(monkeypatch):
    right = _dot_general._cotangent
    wrong = lambda *args: right(*args) * 1.001
    monkeypatch.setattr(_dot_general, "_cotangent", wrong)


def forget_a_window(monkeypatch):
    right = local_response._ends
    monkeypatch.setattr(local_response, "_ends", lambda spec: right(spec)[::-1])


def transpose_the_patches(monkeypatch):
    right = gemm.patches
    monkeypatch.setattr(
        gemm, "patches", lambda x, spec: jnp.flip(right(x, spec), axis=-2)
    )


def drop_a_view(monkeypatch):
    right = windows.spread_views

    def wrong(term, array, described):
        first = (0,) * len(described)
        dropping = lambda place, some: term(place, some) * (0 if place == first else 1)
        return right(dropping, array, described)

    monkeypatch.setattr(windows, "spread_views", wrong)


def pad_with_ones(monkeypatch):
    """The zero that waits for the error, forgotten."""
    one = lambda element, dtype: jnp.ones((), dtype)
    monkeypatch.setattr(buffers, "_zero", one)


def shift_the_rows(monkeypatch):
    right = blocks.longer
    wrong = lambda x, n, axis=1: jnp.roll(right(x, n, axis), 1, axis)
    monkeypatch.setattr(blocks, "longer", wrong)
    monkeypatch.setattr(narrow, "_BLOCK", 1)  # several blocks of rows


def reverse_the_views(monkeypatch):
    right = places.views

    def wrong(x, spec):
        pairs = list(right(x, spec))
        views = [view for _, view in pairs][::-1]
        return [(place, view) for (place, _), view in zip(pairs, views, strict=True)]

    monkeypatch.setattr(places, "views", wrong)


def leave_the_channels(monkeypatch):
    """[g·c] where all groups of a channel are to be side by side."""
    monkeypatch.setattr(narrow, "_channel_by_channel", lambda x, spec: x)


def rotate_backwards(monkeypatch):
    """The number for c = o - s, where it is o + s."""
    right = rotations._by_rotation

    def wrong(kernel):
        own, *others = jnp.split(right(kernel), kernel.shape[-1], -2)
        return jnp.concatenate([own, *others[::-1]], -2)

    monkeypatch.setattr(rotations, "_by_rotation", wrong)


def rotate_past_the_group(monkeypatch):
    """Rows that are shifted past the ends of the channels, not in their groups."""

    def wrong(x, n):
        stop = x.shape[-1] - (n - 1)
        return [x[..., n - 1 + s : stop + s] for s in range(n)]

    monkeypatch.setattr(rotations, "_rotated", wrong)


def misplace_a_phase(monkeypatch):
    right = phases._join

    def wrong(x, *args, **options):
        return jnp.roll(right(x, *args, **options), 1, axis=1)

    monkeypatch.setattr(phases, "_join", wrong)


def forget_to_turn(monkeypatch):
    right = transposed.turned
    wrong = lambda kernel, spec: jnp.flip(right(kernel, spec), range(len(spec.windows)))
    monkeypatch.setattr(transposed, "turned", wrong)


def exchange_groups(monkeypatch):
    right = block_diagonal.spread
    wrong = lambda *args: jnp.roll(right(*args), 1, -1)
    monkeypatch.setattr(block_diagonal, "spread", wrong)


def take_another_diagonal(monkeypatch):
    right = block_diagonal.diagonal
    wrong = lambda dkernel, *args: right(jnp.roll(dkernel, 1, -1), *args)
    monkeypatch.setattr(block_diagonal, "diagonal", wrong)


def exchange_groups_and_examples(monkeypatch):
    """[c h w (n b)] for [c h w (b n)], the images of the kernel's gradient."""
    right = block_diagonal.sharding.merge

    def wrong(x, start, stop):
        if stop == x.ndim:
            x = jnp.swapaxes(x, start, start + 1)
        return right(x, start, stop)

    monkeypatch.setattr(block_diagonal.sharding, "merge", wrong)


def reverse_the_frames(monkeypatch):
    right = slices._frames

    def wrong(*arguments):
        places, frames = zip(*right(*arguments), strict=True)
        return zip(places, frames[::-1], strict=True)

    monkeypatch.setattr(slices, "_frames", wrong)


def exchange_the_columns(monkeypatch):
    right = mec._lowered
    monkeypatch.setattr(mec, "_lowered", lambda kernel: right(jnp.flip(kernel, 1)))


def turn_the_wrong_row(monkeypatch):
    wrong = lambda rows, after: jnp.roll(rows, 1, 0)
    monkeypatch.setattr(mec, "written_down", wrong)


def misplace_a_point(monkeypatch):
    right = winograd.matrices

    def wrong(m):
        at, g, bt = right(m)
        return at, g * (1 + 1e-3 * (np.arange(m + 2) == 1)[:, None]), bt

    monkeypatch.setattr(winograd, "matrices", wrong)


CONV = ["strided", "asymmetric padding"]
MUTATIONS = [
    (keep_kernel_unturned, "conv", "rot180", CONV),
    (shift_padding, "conv", "rot180", CONV),
    (shift_kernel_gradient, "conv", "rot180", CONV),
    (drop_a_term, "conv", "gemm", CONV),
    (transpose_the_patches, "conv", "gemm", CONV),
    (misplace_a_tile, "conv", "gemm", ["tiles"]),
    (turn_the_tiles, "conv", "gemm", ["tiles"]),
    (drop_a_term, "conv", "taps", CONV),
    (reverse_the_views, "conv", "taps", ["depthwise"]),
    (drop_a_view, "conv", "taps", ["depthwise, one filter"]),
    (shift_the_rows, "conv", "taps", ["depthwise, one filter"]),
    (pad_with_ones, "conv", "taps", ["depthwise, one filter"]),
    (leave_the_channels, "conv", "taps", ["grouped"]),
    (rotate_backwards, "conv", "taps", ["groups of as many outputs"]),
    (rotate_past_the_group, "conv", "taps", ["groups of as many outputs"]),
    (pad_with_ones, "conv", "mec", CONV),
    (pad_with_ones, "conv", "slices", ["3-D"]),
    (pad_with_ones, "conv", "winograd", ["asymmetric padding"]),
    (exchange_groups, "conv", "grouped", ["grouped"]),
    (take_another_diagonal, "conv", "grouped", ["grouped"]),
    (exchange_groups, "conv", "block_diagonal", ["narrow groups"]),
    (take_another_diagonal, "conv", "block_diagonal", ["narrow groups"]),
    (exchange_groups_and_examples, "conv", "block_diagonal", ["narrow groups"]),
    (reverse_the_frames, "conv", "slices", ["3-D"]),
    (exchange_the_columns, "conv", "mec", CONV),
    (turn_the_wrong_row, "conv", "mec", CONV),
    (misplace_a_phase, "conv", "phases", CONV),
    (forget_to_turn, "conv", "transposed", ["dilated input"]),
    (misplace_a_point, "conv", "winograd", ["asymmetric padding"]),
    (misplace_a_point, "conv", "winograd_2x2", ["asymmetric padding"]),
    (drop_a_shift, "max_pool", "hand", ["overlapping 3x3/1"]),
    (drop_a_shift, "avg_pool", "hand", ["many channels"]),
    (misplace_the_pixels_windows, "avg_pool", "hand", ["overlapping 3x3/1"]),
    (forget_the_share, "avg_pool", "hand", ["overlapping 3x3/1"]),
    (pad_with_ones, "max_pool", "hand", ["many channels"]),
    (last_tie_wins, "max_pool", "hand", ["overlapping 3x3/1, tied"]),
    (forget_the_count, "avg_pool", "hand", ["overlapping 3x3/1"]),
    (last_tie_wins, "min_pool", "hand", ["overlapping 3x3/2, tied"]),
    (last_tie_wins, "max_pool_with_argmax", "hand", ["overlapping 3x3/2, tied"]),
    (shift_the_windows, "min_pool", "hand", ["overlapping 3x3/2"]),
    (shift_the_windows, "sum_pool", "hand", ["overlapping 3x3/2"]),
    (shift_the_windows, "lp_pool", "hand", ["overlapping 3x3/2, norm 3"]),
    (shift_the_windows, "max_unpool", "hand", ["blocks"]),
    (shift_the_windows, "reduce_window_max", "hand", ["channels first"]),
    (shift_the_windows, "reduce_window_sum", "hand", ["channels first"]),
    (drop_a_shift, "reduce_window_max", "hand", ["dilated, batch and channels too"]),
    (drop_a_shift, "reduce_window_sum", "hand", ["dilated, batch and channels too"]),
    (forget_the_power, "lp_pool", "hand", ["overlapping 3x3/2"]),
    (gather_from_the_next_place, "max_unpool", "hand", ["blocks"]),
    (count_a_bin_short, "adaptive_avg_pool", "hand", ["unlike bins"]),
    (exchange_rows_and_columns, "adaptive_max_pool", "hand", ["unlike bins"]),
    (spoil_one_entry, "dense", "hand", ["lenet5 dense 1"]),
    (forget_the_label, "softmax_cross_entropy", "hand", ["lenet5 loss"]),
    (forget_the_label, "poly_loss_cross_entropy", "hand", ["soft labels"]),
    (forget_a_mean, "batch_norm", "hand", ["image"]),
    (forget_a_mean, "layer_norm", "hand", ["last axis"]),
    (forget_a_mean, "group_norm", "hand", ["image"]),
    (forget_a_window, "local_response_norm", "hand", ["even"]),
    (spoil_a_cotangent, "dot_general", "hand", ["two contracted, one batch"]),
    (mistake_a_logarithm, "kl_divergence", "hand", ["last axis"]),
    (
        forget_the_label,
        "softmax_cross_entropy_with_integer_labels",
        "hand",
        ["lenet5 loss"],
    ),
]


@pytest.mark.parametrize(
    ("mutate", "rule", "formula", "names"),
    MUTATIONS,
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_wrong_rule_fails(monkeypatch, mutate, rule, formula, names):
    assert failures(rule, formula, names) == 0
    mutate(monkeypatch)
    jax.clear_caches()  # the right formula was traced for all layers of a geometry
    try:
        assert failures(rule, formula, names) > 0
    finally:
        jax.clear_caches()


@pytest.mark.parametrize("rule", elementwise.CURVES)
def test_a_wrong_slope_fails(monkeypatch, rule):
    """Each derivative, a thousandth too large where it is computed from."""
    right = elementwise.CURVES[rule]
    larger = lambda f: f and (lambda *a: f(*a) * 1.001)
    wrong = dataclasses.replace(
        right,
        from_output=larger(right.from_output),
        from_input=larger(right.from_input),
    )
    name = next(case.name for case in cases.of(rule) if not case.network)
    assert failures(rule, "hand", [name]) == 0
    monkeypatch.setitem(elementwise.CURVES, rule, wrong)
    assert failures(rule, "hand", [name]) > 0


@pytest.mark.parametrize(
    ("rule", "name", "wrong"),
    [
        ("relu", "at the kink", lambda y, dy: jnp.where(y >= 0, dy, 0)),
        ("tanh", "wide range", lambda y, dy: dy * (1 - y)),
    ],
)
def test_a_wrong_activation_fails(monkeypatch, rule, name, wrong):
    """The wrong side of a kink, a dropped square."""
    curve = dataclasses.replace(elementwise.CURVES[rule], from_output=wrong)
    monkeypatch.setitem(elementwise.CURVES, rule, curve)
    assert failures(rule, "hand", [name]) > 0


@pytest.mark.parametrize("rule", ["softmax", "log_softmax"])
def test_a_dropped_sum_fails(monkeypatch, rule):
    """The Jacobian's second term, [i = j] − y_j, forgotten."""
    right = log_sum_exp.reductions.total
    assert failures(rule, "hand", ["middle axis"]) == 0
    calls = []

    def wrong(x, axes):
        calls.append(x)
        return right(x, axes) * (1 if len(calls) == 1 else 0.999)

    monkeypatch.setattr(log_sum_exp.reductions, "total", wrong)
    assert failures(rule, "hand", ["middle axis"]) > 0


def test_one_wrong_entry_in_a_million_is_seen():
    truth = np.random.default_rng(0).standard_normal((1000, 1000))
    wrong = truth.copy()
    wrong[3, 7] += 0.01
    error, worst = measure.elementwise_error(wrong, truth)
    assert error > 1e-3
    assert worst == (3, 7)
