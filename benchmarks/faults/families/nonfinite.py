"""Cliffs and values that are not finite."""

import math
from collections.abc import Iterator

from ..spec import Case, Setup, spec
from .learning_rate import CANCER, DIGITS, WELL


def cases() -> Iterator[Case]:
    yield from cliff()
    yield from domain_error()
    yield from bad_data()
    yield from overflow()
    yield from outlier_batch()


def cliff() -> Iterator[Case]:
    """Products of many weights: almost flat, then a wall that throws the weights far away. Clipping is the twin."""
    ladder = ((12, 0.5, 6.0), (16, 0.6, 4.0), (24, 0.7, 5.0), (32, 0.75, 8.0))
    for rung, (depth, start, lr) in enumerate(ladder, 1):
        setup = Setup(spec("constant_target"), spec("chain", depth=depth, start=start), "mse", spec("sgd", lr=lr))
        yield Case("cliff", f"chain-{depth}", setup, rung, setup.but(clip=0.005), ("cliff",), may=("lr-unstable",))
    recurrent = Setup(
        spec("digits", rows=200, shape="rows"),
        spec("recurrent", features=8, hidden=24, outputs=10),
        "cross_entropy",
        spec("momentum", lr=0.05),
        batch=32,
        steps=200,
        inject=(spec("radius", value=1.5),),
    )
    for rung, repeat in enumerate((6, 8, 10, 14), 1):
        setup = recurrent.but(model=recurrent.model.but(repeat=repeat))
        yield Case(
            "cliff",
            f"recurrent-{8 * repeat}",
            setup,
            rung,
            setup.but(clip=0.5),
            ("cliff",),
            may=("lr-unstable", "saturated-units"),
        )


def domain_error() -> Iterator[Case]:
    """A logarithm, a root or a quotient meets a number it is not defined for."""
    good = Setup(spec("positive"), spec("mlp", widths=(6, 16, 1), act="tanh"), "mse", spec("sgd", lr=0.05), batch=32)
    for rung, loss in enumerate(("log_error", "sqrt_error"), 1):
        for name, optimizer in (("sgd", spec("sgd", lr=0.2)), ("adam", spec("adam", lr=0.01))):
            setup = good.but(loss=loss, optimizer=optimizer)
            twin = setup.but(loss="mse")
            yield Case(
                "domain-error",
                f"{loss[:-6]}-{name}",
                setup,
                rung,
                twin,
                ("non-finite",),
                ("domain-error",),
                spec("non-finite"),
            )
    for rung, at in enumerate((150, 100, 50, 10), 1):
        setup = good.but(
            loss="relative_error", disturb=spec("zeroed", at=at, target=True), optimizer=spec("sgd", lr=0.002)
        )
        yield Case(
            "domain-error",
            f"quotient-{at}",
            setup,
            rung,
            setup.but(disturb=spec("none")),
            ("non-finite",),
            ("domain-error", "data"),
            spec("non-finite"),
        )
    confident = Setup(DIGITS, WELL, "log_probability", spec("sgd", lr=0.3), batch=64)
    for rung, factor in enumerate((60.0, 100.0, 300.0, 1000.0), 1):
        setup = confident.but(inject=(spec("gain", factor=factor, only=("2",)),))
        yield Case(
            "domain-error",
            f"log-softmax-{factor:.0f}",
            setup,
            rung,
            setup.but(loss="cross_entropy"),
            ("non-finite",),
            ("domain-error",),
            spec("non-finite"),
        )


def bad_data() -> Iterator[Case]:
    for value in (math.inf, math.nan):
        for rung, at in enumerate((200, 100, 30, 1), 1):
            for name, twin in (
                ("digits", Setup(DIGITS, WELL, "cross_entropy", spec("sgd", lr=0.3), batch=64)),
                (
                    "cancer",
                    Setup(
                        CANCER, spec("linear", features=30, outputs=2), "cross_entropy", spec("adam", lr=0.01), batch=32
                    ),
                ),
            ):
                setup = twin.but(disturb=spec("poisoned", at=at, value=value, share=0.001))
                yield Case(
                    "bad-data",
                    f"{name}-{value}-{at}",
                    setup,
                    rung,
                    twin,
                    ("non-finite",),
                    ("data",),
                    spec("non-finite"),
                )


def overflow() -> Iterator[Case]:
    """exp() of logits, and a linear recurrence whose state leaves float32."""
    softmax = Setup(DIGITS, WELL, "exponential_softmax", spec("sgd", lr=0.3), batch=64)
    for rung, factor in enumerate((100.0, 200.0, 400.0, 1000.0), 1):
        setup = softmax.but(inject=(spec("gain", factor=factor, only=("2",)),))
        yield Case(
            "overflow",
            f"exp-{factor:.0f}",
            setup,
            rung,
            setup.but(loss="cross_entropy"),
            ("non-finite",),
            # below exp(88) nothing overflows: the quotient of two powers underflows, and the logarithm meets a zero
            ("overflow",) if factor > 200 else ("overflow", "domain-error"),
            spec("non-finite"),
        )
    for rung, (length, value) in enumerate(((60, 6.0), (80, 6.0), (100, 6.0), (140, 6.0)), 1):
        setup = Setup(
            spec("teacher"),
            spec("iterated", features=8, hidden=8, outputs=1, length=length),
            "mse",
            spec("sgd", lr=0.01),
            steps=60,
            inject=(spec("radius", value=value),),
        )
        yield Case(
            "overflow",
            f"recurrence-{length}",
            setup,
            rung,
            setup.but(inject=(spec("radius", value=0.9),)),
            ("non-finite",),
            ("overflow",),
            spec("non-finite"),
        )


def outlier_batch() -> Iterator[Case]:
    """One batch far off, after which training goes on: healthy."""
    for factor in (10.0, 30.0, 100.0):
        for name, setup in (
            ("digits", Setup(DIGITS, WELL, "cross_entropy", spec("sgd", lr=0.1), batch=64)),
            (
                "adam",
                Setup(DIGITS, spec("mlp", widths=(64, 32, 10)), "cross_entropy", spec("adam", lr=0.005), batch=64),
            ),
            (
                "clipped",
                Setup(
                    CANCER,
                    spec("linear", features=30, outputs=2),
                    "cross_entropy",
                    spec("momentum", lr=0.02),
                    batch=32,
                    clip=1.0,
                ),
            ),
        ):
            disturbed = setup.but(disturb=spec("outlier", at=100, factor=factor))
            yield Case("outlier-batch", f"{name}-{factor:.0f}", disturbed, evidence=spec("well", below=0.5))
