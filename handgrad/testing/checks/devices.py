"""Checks on several devices and for platforms that are not here."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from handgrad.testing.checks.verdict import FailCheck, SkipCheck, attempt, check, judge
from handgrad.testing.compare import Failure, widen
from handgrad.testing.subject import Outcome, Subject, stack

DEVICES = 2
PLATFORMS = ("cpu", "cuda", "tpu")


def _mesh(kind: AxisType) -> jax.sharding.Mesh:
    if jax.device_count() < DEVICES:
        raise SkipCheck("there is one device")
    return jax.make_mesh(
        (DEVICES,), ("i",), axis_types=(kind,), devices=jax.devices()[:DEVICES]
    )


def _put(mesh: jax.sharding.Mesh, x: Any, *spec: str) -> jax.Array:
    """The array on the mesh, its leading axes split as `spec` says."""
    rest = [None] * (np.ndim(x) - len(spec))
    return jax.device_put(x, NamedSharding(mesh, P(*spec, *rest)))


def _spec(array: Any) -> P:
    """How an array's type says that it is split."""
    return array.sharding.spec


@check("shard_map")
def shard_map(subject: Subject) -> list[Failure]:
    """Each device its own call; of a replicated argument the cotangents add up.

    Arguments are sharded along a new leading axis, so this holds for every function.
    """
    mesh = _mesh(AxisType.Auto)
    points = (subject.point, subject.neighbour)
    dys = subject.directions[:2]
    floats, fixed = stack(*points)
    stacked = stack(*dys)
    found = []
    count = len(floats)
    # The last argument is a layer's parameters, mostly.
    for replicated in [()] if count == 1 else [(), (count - 1,), (0,)]:
        operands = tuple(
            subject.point.floats[i] if i in replicated else x
            for i, x in enumerate(floats)
        )
        specs = tuple(P() if i in replicated else P("i") for i in range(count))

        def compute(who, operands=operands, specs=specs, replicated=replicated):
            function = subject.split(subject.function(who))

            def body(floats, fixed):
                own = tuple(
                    x if i in replicated else x[0] for i, x in enumerate(floats)
                )
                ys, _ = function(own, tuple(a[0] for a in fixed))
                return tuple(y[None] for y in ys)

            sharded = jax.shard_map(
                body, mesh=mesh, in_specs=(specs, P("i")), out_specs=P("i")
            )

            def run(floats, fixed, dys):
                ys, vjp = jax.vjp(lambda x: sharded(x, fixed), floats)
                return Outcome(ys, vjp(dys)[0])

            key = ("shard_map", who, replicated)
            return subject.compiled(key, lambda: run)(operands, fixed, stacked)

        with subject.precision(None):
            actual = Outcome(*attempt(subject, compute))
        each = [
            subject.run(
                "rule",
                dy,
                point._replace(
                    floats=tuple(
                        subject.point.floats[i] if i in replicated else x
                        for i, x in enumerate(point.floats)
                    )
                ),
            )
            for point, dy in zip(points, dys, strict=True)
        ]
        expected = Outcome(
            tuple(np.stack(y) for y in zip(*(o.ys for o in each), strict=True)),
            tuple(
                widen(a) + widen(b) if i in replicated else np.stack([a, b])
                for i, (a, b) in enumerate(zip(*(o.dxs for o in each), strict=True))
            ),
        )
        names = ", ".join(subject.names[i] for i in replicated)
        where = f" under shard_map, {names} replicated" if names else " under shard_map"
        found += judge(
            subject, actual, expected, subject.limits(), dys[0], factor=4, where=where
        )
    return found


@check("explicit_mesh")
def explicit_mesh(subject: Subject) -> list[Failure]:
    """Sharding in types: the first argument is split along its first axis."""
    mesh = _mesh(AxisType.Explicit)
    floats, fixed = subject.point
    first = floats[0]
    if not first.ndim or not first.shape[0] or first.shape[0] % DEVICES:
        raise SkipCheck(f"{subject.names[0]} has no first axis to split in {DEVICES}")

    def compute(who):
        run = subject.pull(subject.function(who))
        with jax.set_mesh(mesh):
            operands = (_put(mesh, first, "i"), *(_put(mesh, x) for x in floats[1:]))
            others = tuple(
                _put(mesh, a, "i")
                if a.ndim and a.shape[0] == first.shape[0]
                else _put(mesh, a)
                for a in fixed
            )
            shapes = jax.eval_shape(
                subject.split(subject.function(who)), operands, others
            )
            dys = tuple(
                jax.device_put(dy, NamedSharding(mesh, _spec(y)))
                for dy, y in zip(subject.directions[0], shapes[0], strict=True)
            )
            program = subject.compiled(("explicit", who), lambda: run)
            outcome = program(operands, others, dys)
            for x, dx, name in zip(operands, outcome.dxs, subject.names, strict=True):
                if not dx.sharding.is_equivalent_to(x.sharding, x.ndim):
                    raise FailCheck(
                        f"the gradient of {name} is sharded as {_spec(dx)}, "
                        f"its primal as {_spec(x)}"
                    )
            return outcome

    with subject.precision(None):
        actual = Outcome(*attempt(subject, compute))
    return judge(
        subject,
        actual,
        subject.outcome("rule", 0),
        subject.limits(),
        subject.directions[0],
        factor=4,
        where=" on an explicit mesh",
    )


@check("export")
def export(subject: Subject) -> str:
    """The gradient can be exported for every platform."""

    def compute(who):
        program = jax.jit(subject.pull(subject.function(who)))
        jax.export.export(program, platforms=PLATFORMS)(
            *subject.point, subject.directions[0]
        )
        return ()

    with subject.precision(None):
        attempt(subject, compute)
    return "for " + ", ".join(PLATFORMS)
