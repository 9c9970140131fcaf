"""Healthy runs: architecture x optimizer x batch x schedule at tuned learning rates (`rates.json`)."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from ..spec import Case, Setup, spec

RATES = Path(__file__).parent.parent / "rates.json"
FLAT, IMAGE, ROWS = (spec("digits", rows=400, shape=shape) for shape in ("flat", "image", "rows"))

# architecture -> (setup without optimizer, share of the starting loss that a well trained one is below)
ARCHITECTURES: dict[str, tuple[Setup, float]] = {
    "linear": (Setup(FLAT, spec("linear", features=64, outputs=10), "cross_entropy", spec("sgd"), steps=300), 0.3),
    "linear-wine": (
        Setup(spec("wine"), spec("linear", features=13, outputs=3), "cross_entropy", spec("sgd"), steps=300),
        0.3,
    ),
    "mlp": (Setup(FLAT, spec("mlp", widths=(64, 32, 10)), "cross_entropy", spec("sgd"), steps=300), 0.3),
    "mlp-cancer": (
        Setup(
            spec("breast_cancer"),
            spec("mlp", widths=(30, 24, 24, 2), act="tanh"),
            "cross_entropy",
            spec("sgd"),
            steps=300,
        ),
        0.3,
    ),
    "cnn": (Setup(IMAGE, spec("cnn", channels=6), "cross_entropy", spec("sgd"), steps=200), 0.4),
    "cnn-norm": (Setup(IMAGE, spec("cnn", channels=6, norm=True), "cross_entropy", spec("sgd"), steps=200), 0.4),
    "recurrent": (
        Setup(ROWS, spec("recurrent", features=8, hidden=24, outputs=10), "cross_entropy", spec("sgd"), steps=250),
        0.5,
    ),
    "gru": (Setup(ROWS, spec("gru", features=8, hidden=20, outputs=10), "cross_entropy", spec("sgd"), steps=250), 0.5),
    "transformer": (Setup(spec("text"), spec("transformer", d=24), "cross_entropy", spec("sgd"), steps=200), 0.75),
}
OPTIMIZERS = ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw")
BATCHES = (8, 64, None)
SCHEDULES = {"constant": spec("constant"), "cosine": spec("cosine"), "warmup": spec("warmup")}


def rate(architecture: str, optimizer: str, batch: int | None) -> float:
    return json.loads(RATES.read_text())[f"{architecture}/{optimizer}/{batch or 'full'}"]


def base(architecture: str, batch: int | None) -> Setup:
    """The setup at this batch size, its optimizer still to be set."""
    return ARCHITECTURES[architecture][0].but(batch=batch)


def cases() -> Iterator[Case]:
    """Two thirds of the cross product: each (architecture, optimizer, batch) under two of the three schedules.

    The first of the two takes the tuned rate, the second 0.4 of it, as careful people do.
    """
    names = list(SCHEDULES)
    for (i, architecture), (j, optimizer), (k, batch) in product(*map(enumerate, (ARCHITECTURES, OPTIMIZERS, BATCHES))):
        tuned = rate(architecture, optimizer, batch)
        for offset, share in ((0, 1.0), (1, 0.4)):
            schedule = names[(i + j + k + offset) % 3]
            setup = base(architecture, batch).but(
                optimizer=spec(optimizer, lr=share * tuned), schedule=SCHEDULES[schedule]
            )
            name = f"{architecture}-{optimizer}-{batch or 'full'}-{schedule}"
            yield Case("healthy", name, setup, evidence=spec("well", below=ARCHITECTURES[architecture][1]))
    for architecture, batch in product(ARCHITECTURES, (64, None)):
        setup = base(architecture, batch).but(optimizer=spec("nadam", lr=rate(architecture, "nadam", batch)))
        evidence = spec("well", below=ARCHITECTURES[architecture][1])
        yield Case("healthy", f"{architecture}-nadam-{batch or 'full'}", setup, evidence=evidence)
