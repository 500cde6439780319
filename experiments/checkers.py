"""How good is each checker of derivatives? Wrong rules, right rules, seconds.

`python -m experiments.checkers` runs every wrong rule of `tests/mutants`, every rule
and formula of handgrad, and many of JAX's own functions through

- `handgrad.testing.check_rule`, all checks,
- `jax.test_util.check_grads`, in float64, reverse mode, up to the second order,
- the same in the arguments' own dtype, as most tests call it,
- `chex.assert_numerical_grads`, the same, with its own tolerance,
- `torch.autograd.gradcheck`, of a `torch.autograd.Function` that computes with the JAX
  rule: its values, its backward pass,

and prints what each of them caught, missed and falsely accused, and its seconds on the
right rules, each time with JAX's caches emptied. The exit status is 1 if `check_rule`
missed a wrong rule or accused a right one.
"""

import argparse
import dataclasses
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.test_util import check_grads
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.compare_gradients import open_workdir
from experiments.runs import UsageError, describe_environment, write_json
from handgrad import RULES, cases, measure
from handgrad.cases import Case
from handgrad.testing import check_rule
from tests.mutants import MUTANTS, RIGHT

GROUPS = ("wrong", "right", "handgrad", "jax")
LARGE = 1000  # numbers, of whose whole Jacobian gradcheck would run out of memory


@dataclasses.dataclass(frozen=True)
class Call:
    """A function with arguments, and whether its derivative is wrong."""

    group: str
    name: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    reference: Callable[..., Any] | None = None
    rounding: float = 1.0


def calls() -> Iterator[Call]:
    """Everything that the checkers are run on."""
    for mutant in MUTANTS:
        yield Call("wrong", str(mutant), mutant.rule, mutant.args, mutant.reference)
    for name, (f, args) in RIGHT.items():
        yield Call("right", name, f, args)
    for rule in RULES:
        for name, formula in RULES[rule].formulas.items():
            case = _small_case(rule, name)
            if case is not None:
                yield Call(
                    "handgrad",
                    f"{case} ({name})",
                    case.positional(name),
                    tuple(case.arrays("float32").values()),
                    case.positional("autodiff"),
                    formula.rounding,
                )
    for name, (f, args) in _jax_functions().items():
        yield Call("jax", name, f, args)


def _small_case(rule: str, formula: str) -> Case | None:
    """The first case of a rule that is no network's layer and not empty."""
    suitable = (
        case
        for case in cases.of(rule)
        if case.network is None
        and not case.name.startswith("empty")
        and measure.suitable(formula, case)
    )
    return next(suitable, None)


def _jax_functions() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    def positive(*shape: int) -> np.ndarray:
        return random.uniform(0.5, 2, shape).astype(np.float32)

    x, y, square = normal(3, 4), normal(3, 4), normal(4, 4)
    image, kernel = normal(2, 6, 5, 2), normal(3, 3, 2, 3)
    symmetric = square @ square.T + 4 * np.eye(4, dtype=np.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    nn, linalg, special = jax.nn, jnp.linalg, jax.scipy.special
    one = {
        f"jnp.{f.__name__}": f
        for f in (jnp.sin, jnp.tanh, jnp.exp, jnp.abs, jnp.arctan, jnp.sinh, jnp.sinc)
    }
    one |= {
        f"jax.nn.{name}": getattr(nn, name)
        for name in (
            "relu", "sigmoid", "softplus", "gelu", "silu", "elu", "softmax",
            "log_softmax", "logsumexp", "standardize", "soft_sign", "leaky_relu",
        )
    }  # fmt: skip
    one |= {
        "jnp.sum": jnp.sum, "jnp.prod": jnp.prod, "jnp.var": jnp.var,
        "jnp.std": jnp.std,
        "jnp.max": jnp.max, "jnp.sort": jnp.sort, "jnp.cumsum": jnp.cumsum,
        "jnp.cumprod": jnp.cumprod, "jnp.linalg.norm": linalg.norm, "erf": special.erf,
        "jnp.flip": jnp.flip, "lax.top_k": lambda x: lax.top_k(x, 2),
        "jax.image.resize": lambda x: jax.image.resize(x, (5, 6), "linear"),
    }  # fmt: skip
    positives = {
        "jnp.log": jnp.log, "jnp.sqrt": jnp.sqrt, "gammaln": special.gammaln,
        "lax.rsqrt": lax.rsqrt,
    }  # fmt: skip
    return {
        **{name: (f, (x,)) for name, f in one.items()},
        **{name: (f, (positive(3, 4),)) for name, f in positives.items()},
        "jnp.logaddexp": (jnp.logaddexp, (x, y)),
        "jnp.maximum": (jnp.maximum, (x, y)),
        "jnp.arctan2": (jnp.arctan2, (x, y)),
        "jnp.matmul": (jnp.matmul, (x, square)),
        "jnp.where": (lambda a, b: jnp.where(a > b, a, 2 * b), (x, y)),
        "jnp.take": (lambda a, i: jnp.take(a, i, axis=1), (x, np.array([3, 0, 3]))),
        "jnp.linalg.inv": (linalg.inv, (symmetric,)),
        "jnp.linalg.slogdet": (lambda a: linalg.slogdet(a)[1], (symmetric,)),
        "jnp.linalg.solve": (linalg.solve, (symmetric, normal(4, 2))),
        "jnp.linalg.cholesky": (linalg.cholesky, (symmetric,)),
        "jnp.fft.fft": (jnp.fft.fft, (x + 1j * y,)),
        "lax.conv": (
            lambda x, k: lax.conv_general_dilated(
                x, k, (2, 2), "SAME", dimension_numbers=numbers
            ),
            (image, kernel),
        ),
        "lax.reduce_window max": (
            lambda x: lax.reduce_window(
                x, np.array(-np.inf, x.dtype), lax.max, (1, 2, 2, 1), (1, 2, 2, 1),
                "VALID",
            ),
            (image,),
        ),
        "jax.ops.segment_sum": (
            lambda x, i: jax.ops.segment_sum(x, i, 2), (x, np.array([1, 0, 1]))
        ),
        "lax.scan": (
            lambda x: lax.scan(lambda c, r: (jnp.tanh(c + r), c * r), x[0], x), (x,)
        ),
    }  # fmt: skip


# The checkers. Each returns whether the rule passes; what it raises is told.


def by_check_rule(call: Call) -> list[str]:
    """The checks that fail."""
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16", "float16")
    budget: dict[str, float] = dict.fromkeys(dtypes, call.rounding)
    return check_rule(
        call.f,
        call.args,
        reference=call.reference,
        dtype_budget=budget,
        raise_on_failure=False,
    ).failed


def _wide(call: Call) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of its floating-point leaves in float64, as the others want it."""
    leaves, tree = jax.tree.flatten(call.args)
    floats = [np.asarray(a) for a in leaves]
    places = [i for i, a in enumerate(floats) if jnp.issubdtype(a.dtype, np.inexact)]
    wide = tuple(
        floats[i].astype(np.complex128 if np.iscomplexobj(floats[i]) else np.float64)
        for i in places
    )

    def f(*arrays: Any) -> Any:
        chosen = dict(zip(places, arrays, strict=True))
        full = [chosen.get(i, leaf) for i, leaf in enumerate(leaves)]
        return call.f(*jax.tree.unflatten(tree, full))

    return f, wide


def by_check_grads(call: Call) -> list[str]:
    """Reverse mode up to the second order in float64: nothing is lost to rounding."""
    with jax.enable_x64(True):
        check_grads(*_wide(call), order=2, modes=["rev"])
    return []


def by_check_grads_as_called(call: Call) -> list[str]:
    """In the arguments' own dtype and with the defaults, as most tests call it."""
    leaves, tree = jax.tree.flatten(call.args)
    fixed = [not jnp.issubdtype(np.asarray(a).dtype, np.inexact) for a in leaves]

    def f(*arrays: Any) -> Any:
        floats = iter(arrays)
        full = [a if k else next(floats) for a, k in zip(leaves, fixed, strict=True)]
        return call.f(*jax.tree.unflatten(tree, full))

    floats = tuple(a for a, k in zip(leaves, fixed, strict=True) if not k)
    check_grads(f, floats, order=2, modes=["rev"])
    return []


def by_chex(call: Call) -> list[str]:
    """The same with chex's tolerance, which it scales by the argument's size."""
    # By name, so that types can be checked where it is not installed; so is torch.
    chex = importlib.import_module("chex")
    with jax.enable_x64(True):
        chex.assert_numerical_grads(*_wide(call), order=2, modes=["rev"])
    return []


def by_torch(call: Call) -> list[str]:
    """Gradcheck of a PyTorch function whose two passes are the JAX rule's."""
    torch = importlib.import_module("torch")
    f, arrays = _wide(call)
    with jax.enable_x64(True):
        forward = jax.jit(lambda *arrays: tuple(jax.tree.leaves(f(*arrays))))
        backward = jax.jit(lambda arrays, dys: jax.vjp(forward, *arrays)[1](dys))

        class Twin(torch.autograd.Function):  # type: ignore[misc]
            @staticmethod
            def forward(ctx: Any, *tensors: Any) -> Any:
                ctx.save_for_backward(*tensors)
                ys = jax.device_get(forward(*(t.detach().numpy() for t in tensors)))
                return tuple(torch.tensor(np.array(y)) for y in ys)

            @staticmethod
            def backward(ctx: Any, *dys: Any) -> Any:
                tensors = tuple(t.detach().numpy() for t in ctx.saved_tensors)
                # PyTorch's gradient of a complex number is the conjugate of JAX's.
                dxs = backward(tensors, tuple(np.conj(dy.numpy()) for dy in dys))
                return tuple(torch.tensor(np.conj(np.array(dx))) for dx in dxs)

        inputs = tuple(torch.tensor(a, requires_grad=True) for a in arrays)
        fast = sum(a.size for a in arrays) > LARGE
        torch.autograd.gradcheck(Twin.apply, inputs, fast_mode=fast)
    return []


CHECKERS: dict[str, Callable[[Call], list[str]]] = {
    "handgrad.testing.check_rule": by_check_rule,
    "jax.test_util.check_grads": by_check_grads,
    "check_grads, own dtype": by_check_grads_as_called,
    "chex.assert_numerical_grads": by_chex,
    "torch.autograd.gradcheck": by_torch,
}


def judge(checker: str, call: Call) -> dict[str, Any]:
    """One checker on one call: does it object, why, in how many seconds?"""
    jax.clear_caches()
    start = time.perf_counter()
    try:
        failed = CHECKERS[checker](call)
    except Exception as error:  # whatever is raised is an objection
        failed = [f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"]
    return {
        "checker": checker,
        "group": call.group,
        "name": call.name,
        "objects": bool(failed),
        "why": failed,
        "seconds": round(time.perf_counter() - start, 4),
    }


def available() -> list[str]:
    """The checkers whose packages are installed."""
    needs = {"chex.assert_numerical_grads": "chex", "torch.autograd.gradcheck": "torch"}
    names = []
    for name in CHECKERS:
        try:
            __import__(needs.get(name, "jax"))
        except ModuleNotFoundError:
            continue
        names.append(name)
    return names


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Caught, missed, false alarms and seconds of each checker."""
    base = {
        row["name"]: row["seconds"]
        for row in rows
        if row["checker"] == "jax.test_util.check_grads" and not row["objects"]
    }
    lines = []
    for checker in dict.fromkeys(row["checker"] for row in rows):
        own = [row for row in rows if row["checker"] == checker]
        wrong = [row for row in own if row["group"] == "wrong"]
        right = [row for row in own if row["group"] != "wrong"]
        ratios = [
            row["seconds"] / base[row["name"]]
            for row in right
            if row["name"] in base and base[row["name"]]
        ]
        lines.append(
            {
                "checker": checker,
                "caught": sum(row["objects"] for row in wrong),
                "missed": sum(not row["objects"] for row in wrong),
                "right": len(right),
                "false_alarms": sum(row["objects"] for row in right),
                "seconds": round(sum(row["seconds"] for row in right), 2),
                "ratio": round(statistics.median(ratios), 2) if ratios else None,
                "largest_ratio": round(max(ratios), 2) if ratios else None,
            }
        )
    return lines


def print_tables(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The summary, then what each checker missed or falsely accused."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("checker", "caught", "missed", "false alarms", "seconds, right rules"):
        table.add_column(name, justify="left" if name == "checker" else "right")
    table.add_column("time / check_grads'\nmedian (largest)", justify="right")
    for line in summary(rows):
        ratio = f"{line['ratio']} ({line['largest_ratio']})" if line["ratio"] else "–"
        table.add_row(
            line["checker"],
            *(str(line[key]) for key in ("caught", "missed")),
            f"{line['false_alarms']} of {line['right']}",
            f"{line['seconds']:.1f}",
            ratio,
        )
    console.print(table)
    for checker in dict.fromkeys(row["checker"] for row in rows):
        own = [row for row in rows if row["checker"] == checker]
        missed = [
            row["name"] for row in own if row["group"] == "wrong" and not row["objects"]
        ]
        alarms = [
            f"{row['name']}: {', '.join(row['why'])[:100]}"
            for row in own
            if row["group"] != "wrong" and row["objects"]
        ]
        for what, names in (("missed", missed), ("false alarm", alarms)):
            for name in names:
                console.print(f"{checker} {what}: {name}", highlight=False)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.checkers",
        description="Compares checkers of derivatives on wrong and on right rules.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "names", nargs="*", metavar="TEXT", help="only calls with this text in the name"
    )
    parser.add_argument(
        "--group", choices=GROUPS, action="append", help="only this one"
    )
    parser.add_argument("--checker", choices=list(CHECKERS), action="append")
    parser.add_argument("--workdir", type=Path, default=Path("runs/checkers"))
    return parser.parse_args(arguments)


def run(flags: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Judges as the flags say, prints the table and writes `checkers.json`."""
    open_workdir(flags.workdir)
    chosen = [
        call
        for call in calls()
        if call.group in (flags.group or GROUPS)
        and (not flags.names or any(text in call.name for text in flags.names))
    ]
    if not chosen:
        raise UsageError("no call has that text in its name")
    names = flags.checker or available()
    environment, rows = describe_environment(), []
    for call in chosen:
        rows += [judge(name, call) for name in names]
        # After each call: what was judged is there, whatever comes.
        report = {**environment, "summary": summary(rows), "rows": rows}
        write_json(flags.workdir / "checkers.json", report)
    print_tables(rows, console)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        rows = run(parse(arguments), console)
    except UsageError as error:
        print(f"experiments.checkers: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments.checkers: interrupted", file=sys.stderr)
        return 130
    ours = [row for row in rows if row["checker"] == "handgrad.testing.check_rule"]
    return int(any(row["objects"] != (row["group"] == "wrong") for row in ours))


if __name__ == "__main__":
    sys.exit(main())
