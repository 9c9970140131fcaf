"""Loops that do not do what they look like."""

from collections.abc import Iterator

from ..spec import Case, Setup, spec
from .learning_rate import DIGITS

MLP = Setup(DIGITS, spec("mlp", widths=(64, 32, 32, 10)), "cross_entropy", spec("sgd", lr=0.2), batch=64)
ADAM = MLP.but(optimizer=spec("adam", lr=0.005))
CONV = Setup(
    spec("digits", rows=300, shape="image"),
    spec("cnn", channels=6),
    "cross_entropy",
    spec("momentum", lr=0.03),
    batch=32,
    steps=200,
)
MOONS = Setup(spec("moons"), spec("mlp", widths=(2, 16, 16, 2), act="tanh"), "cross_entropy", spec("nesterov", lr=0.1))
TASKS = (("mlp", MLP), ("adam", ADAM), ("conv", CONV), ("moons", MOONS))


def cases() -> Iterator[Case]:
    yield from missing_zero_grad()
    yield from detached()
    yield from stale()
    yield from left_out()


def missing_zero_grad() -> Iterator[Case]:
    """The gradient is zeroed every few updates or never, while every backward pass is followed by a step."""
    for rung, every in enumerate((10, 30, 100, 0), 1):
        for name, twin in TASKS:
            setup = twin.but(wiring=spec("loop", zero_every=every))
            yield Case(
                "missing-zero-grad", f"{name}-{every}", setup, rung, twin, ("wiring",), ("gradients-accumulate",)
            )


def detached() -> Iterator[Case]:
    for name, twin, first, last in (("mlp", MLP, "1", "3"), ("conv", CONV, "2", "5"), ("moons", MOONS, "1", "3")):
        before = {"1": ("0.",), "3": ("0.", "2."), "2": ("0.",), "5": ("0.", "3.")}
        for rung, after in ((1, first), (2, last)):
            yield Case(
                "detached",
                f"{name}-after-{after}",
                twin.but(inject=(spec("detach", after=after),)),
                rung,
                twin,
                ("wiring",),
                ("detached",),
                spec("unmoved", layers=before[after]),
            )
        yield Case(
            "detached",
            f"{name}-loss",
            twin.but(wiring=spec("loop", detached=True)),
            4,
            twin,
            ("wiring",),
            ("detached",),
            spec("unmoved", layers=("",)),
        )


def stale() -> Iterator[Case]:
    """Modules are replaced (re-initialized, copied, moved) after the optimizer was built."""
    for name, twin, ladder in (
        ("mlp", MLP, (("0",), ("4",), ("0", "2"), ("",))),
        ("adam", ADAM, (("2",), ("4",), ("2", "4"), ("",))),
        ("conv", CONV, (("0",), ("7",), ("0", "3"), ("",))),
        (
            "wine",
            Setup(spec("wine"), spec("mlp", widths=(13, 16, 3), act="tanh"), "cross_entropy", spec("sgd", lr=0.1)),
            (("0",), ("2",), ("",)),
        ),
    ):
        for rung, modules in enumerate(ladder, 1):
            yield Case(
                "stale-parameters",
                f"{name}-{'-'.join(modules) or 'all'}",
                twin.but(wiring=spec("loop", stale=modules)),
                rung,
                twin,
                ("wiring",),
                ("stale-parameters", "not-in-optimizer"),
                spec("unmoved", layers=tuple(f"{m}." if m else "" for m in modules)),
            )


def left_out() -> Iterator[Case]:
    for name, twin, ladder in (
        ("mlp", MLP, (("4.",), ("2.",), ("0.",), ("0.", "2."))),
        ("conv", CONV, (("3.",), ("0.",), ("0.", "3."))),
        ("moons", MOONS, (("4.",), ("2.",), ("0.",), ("0.", "2."))),
    ):
        for rung, layers in enumerate(ladder, 1):
            yield Case(
                "left-out",
                f"{name}-{''.join(layers)}",
                twin.but(wiring=spec("loop", left_out=layers)),
                rung,
                twin,
                ("wiring",),
                ("not-in-optimizer", "stale-parameters"),
                spec("unmoved", layers=layers),
            )
