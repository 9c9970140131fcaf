"""Dead and saturated units: by a huge step, by bias, by initialization, by raw inputs; and what only looks like it."""

from collections.abc import Iterator

from ..spec import Case, Setup, spec
from .learning_rate import DIGITS

RELU = Setup(DIGITS, spec("mlp", widths=(64, 32, 10)), "cross_entropy", spec("sgd", lr=0.2), batch=64)
RELU2 = RELU.but(model=spec("mlp", widths=(64, 32, 32, 10)))
TANH = RELU.but(model=spec("mlp", widths=(64, 32, 32, 10), act="tanh"), optimizer=spec("sgd", lr=0.1))
CONV = Setup(
    spec("digits", rows=300, shape="image"),
    spec("cnn", channels=6),
    "cross_entropy",
    spec("momentum", lr=0.03),
    batch=32,
    steps=200,
)

DEAD, SATURATED = (spec("worse-by-units", property=name, share=0.4) for name in ("dead", "saturated"))


def cases() -> Iterator[Case]:
    yield from dead_by_bias()
    yield from dead_by_step()
    yield from dead_by_initialization()
    yield from saturated_by_initialization()
    yield from saturated_by_inputs()
    yield from saturated_by_step()
    yield from harmless()


def dead_by_bias() -> Iterator[Case]:
    moons = Setup(spec("moons"), spec("mlp", widths=(2, 16, 2)), "cross_entropy", spec("adam", lr=0.01))
    tasks = (("mlp", RELU, ("0",)), ("second", RELU2, ("2",)), ("conv", CONV, ("3",)), ("moons", moons, ("0",)))
    for rung, share in enumerate((0.8, 0.9, 0.95, 1.0), 1):
        for name, twin, only in tasks:
            setup = twin.but(inject=(spec("bias", value=-40.0, share=share, only=only),))
            yield Case("dead-by-bias", f"{name}-{share}", setup, rung, twin, ("dead-units",), ("bias",), DEAD)


def dead_by_step() -> Iterator[Case]:
    """One update at a rate far too large throws the units' inputs below zero on all data."""
    tasks = (
        ("mlp", RELU2, (100, 200, 400, 1000)),
        ("conv", CONV, (100, 200, 500, 1000)),
        (
            "deep",
            RELU.but(model=spec("mlp", widths=(64, 24, 24, 24, 10)), optimizer=spec("momentum", lr=0.03)),
            (1000, 2000, 5000, 10000),
        ),
    )
    for name, twin, ladder in tasks:
        for rung, factor in enumerate(ladder, 1):
            setup = twin.but(schedule=spec("spike", at=20, factor=float(factor)))
            yield Case("dead-by-step", f"{name}-{factor}", setup, rung, twin, ("dead-units",), ("large-step",), DEAD)


def dead_by_initialization() -> Iterator[Case]:
    """All incoming weights negative on inputs that are positive: the output of a ReLU, raw pixels."""
    raw = RELU.but(data=spec("digits", rows=500, raw=True, scale=0.1))
    for rung, share in enumerate((0.8, 0.9, 0.95, 1.0), 1):
        for name, twin, only in (("raw", raw, ("0",)), ("second", RELU2, ("2",)), ("conv", CONV, ("3",))):
            setup = twin.but(inject=(spec("negative", share=share, only=only, shift=0.05),))
            yield Case(
                "dead-by-initialization",
                f"{name}-{share}",
                setup,
                rung,
                twin,
                ("dead-units",),
                ("initialization", "bias"),
                DEAD,
            )


def saturated_by_initialization() -> Iterator[Case]:
    sigmoid = TANH.but(model=spec("mlp", widths=(64, 32, 10), act="sigmoid"), optimizer=spec("momentum", lr=0.1))
    cancer = Setup(
        spec("breast_cancer"), spec("mlp", widths=(30, 24, 24, 2), act="tanh"), "cross_entropy", spec("adam", lr=0.002)
    )
    tasks = (
        ("tanh", TANH, ("0", "2"), (60, 100, 300, 1000)),
        ("sigmoid", sigmoid, ("0",), (100, 300, 1000, 3000)),
        ("cancer", cancer, ("0", "2"), (60, 100, 300, 1000)),
    )
    for name, twin, only, ladder in tasks:
        for rung, factor in enumerate(ladder, 1):
            setup = twin.but(inject=(spec("gain", factor=float(factor), only=only),))
            yield Case(
                "saturated-by-initialization",
                f"{name}-{factor}",
                setup,
                rung,
                twin,
                ("saturated-units",),
                ("initialization",),
                SATURATED,
            )


def saturated_by_inputs() -> Iterator[Case]:
    for name, twin, ladder in (
        ("digits", TANH, (60.0, 100.0, 300.0, 1000.0)),
        (
            "sigmoid",
            TANH.but(model=spec("mlp", widths=(64, 32, 10), act="sigmoid"), optimizer=spec("momentum", lr=0.1)),
            (60.0, 100.0, 300.0, 1000.0),
        ),
    ):
        for rung, scale in enumerate(ladder, 1):
            setup = twin.but(data=twin.data.but(scale=scale))
            yield Case(
                "saturated-inputs",
                f"{name}-{scale:.0f}",
                setup,
                rung,
                twin,
                ("saturated-units",),
                ("input-scale",),
                SATURATED,
                may=("ravine",),
            )
    for name, features in (("wine", 13), ("breast_cancer", 30)):
        twin = Setup(
            spec(name),
            spec("mlp", widths=(features, 24, 3 if name == "wine" else 2), act="tanh"),
            "cross_entropy",
            spec("sgd", lr=0.1),
        )
        yield Case(
            "saturated-inputs",
            f"raw-{name}",
            twin.but(data=spec(name, raw=True)),
            4,
            twin,
            ("saturated-units",),
            ("input-scale",),
            SATURATED,
            may=("ravine",),
        )


def saturated_by_step() -> Iterator[Case]:
    teacher = Setup(spec("teacher"), spec("mlp", widths=(8, 16, 1), act="tanh"), "mse", spec("sgd", lr=0.1))
    for name, twin, ladder in (
        ("digits", TANH, (1500, 3000, 5000, 15000)),
        ("teacher", teacher, (1500, 3000, 5000, 15000)),
    ):
        for rung, factor in enumerate(ladder, 1):
            setup = twin.but(schedule=spec("spike", at=10, factor=float(factor)))
            yield Case(
                "saturated-by-step",
                f"{name}-{factor}",
                setup,
                rung,
                twin,
                ("saturated-units",),
                ("large-step",),
                SATURATED,
            )


def harmless() -> Iterator[Case]:
    """Sparse but alive, a tenth dead, confident outputs and gates: these train well."""
    sparse = spec("bias", value=-0.6, share=1.0, only=("0",))
    tenth = spec("bias", value=-40.0, share=0.1, only=("0",))
    for name, setup, below in (
        ("sparse-digits", RELU.but(inject=(sparse,), model=spec("mlp", widths=(64, 64, 10))), 0.5),
        ("sparse-adam", RELU.but(inject=(sparse,), optimizer=spec("adam", lr=0.005)), 0.5),
        ("tenth-dead-mlp", RELU.but(inject=(tenth,)), 0.3),
        ("tenth-dead-adam", RELU2.but(inject=(tenth,), optimizer=spec("adam", lr=0.005)), 0.3),
        ("tenth-dead-conv", CONV.but(inject=(spec("bias", value=-40.0, share=0.1, only=("3",)),)), 0.5),
        (
            "confident-sigmoid",
            Setup(
                spec("breast_cancer", as_float=True),
                spec("mlp", widths=(30, 16, 1), last="sigmoid"),
                "bce_probability",
                spec("adam", lr=0.02),
                steps=400,
            ),
            0.2,
        ),
        (
            "confident-softmax",
            RELU.but(
                model=spec("mlp", widths=(64, 32, 10), last="softmax"),
                loss="nll_probability",
                optimizer=spec("adam", lr=0.01),
                steps=400,
            ),
            0.2,
        ),
        ("confident-logits", RELU.but(optimizer=spec("momentum", lr=0.1), steps=400), 0.2),
        (
            "confident-gates",
            Setup(
                spec("digits", rows=300, shape="rows"),
                spec("gru", features=8, hidden=24, outputs=10),
                "cross_entropy",
                spec("adam", lr=0.02),
                batch=32,
            ),
            0.3,
        ),
        (
            "confident-tanh",
            RELU.but(model=spec("mlp", widths=(64, 32, 10), act="tanh"), optimizer=spec("adam", lr=0.02), steps=400),
            0.2,
        ),
    ):
        yield Case("harmless-units", name, setup, evidence=spec("well", below=below))
