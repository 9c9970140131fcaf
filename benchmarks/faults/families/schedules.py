"""Faults of the schedule: a decay that comes too early, a rate that grows past the limit."""

from collections.abc import Iterator

from ..spec import Case, Setup, spec
from .learning_rate import BOWL, DIGITS, WELL, quadratic


def cases() -> Iterator[Case]:
    yield from decayed_early()
    yield from grown_past_limit()


def decayed_early() -> Iterator[Case]:
    tasks = {
        "digits-sgd": Setup(DIGITS, WELL, "cross_entropy", spec("sgd", lr=0.3), batch=64),
        "digits-adam": Setup(DIGITS, WELL, "cross_entropy", spec("adam", lr=0.005), batch=64),
        "quadratic": quadratic("sgd", BOWL, of_limit=0.5),
    }
    for name, twin in tasks.items():
        for rung, (start, rate) in enumerate(((30, 0.93), (20, 0.9), (10, 0.8), (5, 0.5)), 1):
            setup = twin.but(schedule=spec("decay", start=start, rate=rate))
            yield Case("decayed-early", f"{name}-{start}", setup, rung, twin, ("lr-too-small",), ("schedule",))


def grown_past_limit() -> Iterator[Case]:
    """A rate that fits at first is raised past the limit, at once or step by step."""
    network = Setup(spec("teacher"), spec("mlp", widths=(8, 24, 1), act="tanh"), "mse", spec("sgd", of_limit=0.4))
    tasks = {
        "jump-quadratic": (quadratic("sgd", of_limit=0.5), "jump", ((100, 2.1), (100, 2.3), (60, 2.8), (60, 4.0))),
        "jump-momentum": (quadratic("momentum", of_limit=0.3), "jump", ((100, 3.5), (100, 3.8), (60, 5.0), (60, 8.0))),
        "growth-diabetes": (
            Setup(spec("diabetes"), spec("linear", features=10, outputs=1), "mse", spec("sgd", of_limit=0.3)),
            "growth",
            ((50, 1.01), (50, 1.02), (50, 1.05), (50, 1.1)),
        ),
        "jump-network": (network, "jump", ((100, 12.0), (100, 16.0), (60, 24.0), (60, 36.0))),
    }
    for name, (twin, kind, ladder) in tasks.items():
        for rung, (start, amount) in enumerate(ladder, 1):
            options = {"at": start, "factor": amount} if kind == "jump" else {"start": start, "rate": amount}
            setup = twin.but(schedule=spec(kind, **options))
            yield Case(
                "schedule-past-limit",
                f"{name}-{amount}",
                setup,
                rung,
                twin,
                ("lr-unstable",),
                ("schedule",),
                may=("saturated-units", "lr-oscillation"),
            )
