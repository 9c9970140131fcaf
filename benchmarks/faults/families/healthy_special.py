"""Healthy runs that look odd: noise floors, late drops, catapults, fine-tuning, adapters, experts, games."""

from collections.abc import Iterator

from ..spec import Case, Setup, spec
from .learning_rate import BOWL, CANCER, DIGITS, quadratic

MLP = Setup(DIGITS, spec("mlp", widths=(64, 32, 10)), "cross_entropy", spec("momentum", lr=0.05), batch=64)
TANH = MLP.but(model=spec("mlp", widths=(64, 32, 10), act="tanh"))
ADAM = MLP.but(optimizer=spec("adam", lr=0.005))
CONV = Setup(
    spec("digits", rows=300, shape="image"),
    spec("cnn", channels=6),
    "cross_entropy",
    spec("momentum", lr=0.03),
    batch=32,
    steps=200,
)
TEACHER = Setup(spec("teacher"), spec("mlp", widths=(8, 24, 1), act="tanh"), "mse", spec("sgd", lr=0.1))


def cases() -> Iterator[Case]:
    for family, configurations in (
        ("healthy-regularized", regularized()),
        ("healthy-data", data()),
        ("healthy-rates", rates()),
        ("healthy-schedules", schedules()),
        ("healthy-starts", starts()),
        ("healthy-structures", structures()),
    ):
        for name, setup, evidence in configurations:
            yield Case(family, name, setup, evidence=evidence)


def well(below: float) -> object:
    return spec("well", below=below)


Configurations = Iterator[tuple[str, Setup, object]]


def regularized() -> Configurations:
    for name, setup in (("mlp", MLP), ("adam", ADAM)):
        for dropout in (0.2, 0.5):
            yield f"dropout-{name}-{dropout}", setup.but(model=setup.model.but(dropout=dropout)), well(0.4)
    yield "weight-decay-sgd", MLP.but(optimizer=spec("momentum", lr=0.05, weight_decay=1e-3)), well(0.3)
    yield "weight-decay-adam", ADAM.but(optimizer=spec("adam", lr=0.005, weight_decay=1e-3)), well(0.3)
    yield "weight-decay-adamw", ADAM.but(optimizer=spec("adamw", lr=0.005, weight_decay=0.1)), well(0.3)
    for clip in (0.1, 1.0):
        yield f"clipped-mlp-{clip}", MLP.but(clip=clip, optimizer=spec("momentum", lr=0.1)), well(0.4)
        yield f"clipped-conv-{clip}", CONV.but(clip=clip, steps=300), well(0.5)
    yield "accumulated-mlp", MLP.but(batch=16, wiring=spec("loop", micro=4)), well(0.3)
    yield "accumulated-adam", ADAM.but(batch=8, wiring=spec("loop", micro=2)), well(0.3)
    yield "accumulated-conv", CONV.but(batch=8, wiring=spec("loop", micro=4)), well(0.5)
    yield "norm-dropout", MLP.but(model=spec("mlp", widths=(64, 32, 32, 10), norm=True, dropout=0.2)), well(0.4)
    yield "groups-sgd", MLP.but(optimizer=spec("momentum", lr=0.05, split=0.3, weight_decay=1e-3)), well(0.3)
    yield "groups-adamw", ADAM.but(optimizer=spec("adamw", lr=0.005, split=3.0, weight_decay=0.05)), well(0.3)
    yield "groups-conv", CONV.but(optimizer=spec("momentum", lr=0.03, split=2.0)), well(0.5)


def data() -> Configurations:
    for noise, below in ((0.1, 0.7), (0.3, 0.9)):
        labels = spec("digits", rows=500, label_noise=noise)
        yield f"label-noise-mlp-{noise}", MLP.but(data=labels), well(below)
        yield (
            f"label-noise-linear-{noise}",
            MLP.but(data=labels, model=spec("linear", features=64, outputs=10)),
            well(below),
        )
        yield f"label-noise-adam-{noise}", ADAM.but(data=labels), well(below)
    for share in (0.05, 0.15):
        unequal = spec("digits", rows=300, imbalance=share)
        yield f"imbalance-mlp-{share}", MLP.but(data=unequal, batch=32), well(0.4)
        yield f"imbalance-adam-{share}", ADAM.but(data=unequal, batch=32), well(0.4)
    # Noise floors: the best linear fit leaves this much of the variance.
    for noise in (0.5, 1.0):
        regression = spec("regression", rows=256, features=6, noise=noise)
        setup = Setup(regression, spec("linear", features=6, outputs=1), "mse", spec("sgd", lr=0.05))
        yield f"floor-full-{noise}", setup, well(0.5)
        yield f"floor-batch-{noise}", setup.but(batch=64, optimizer=spec("sgd", lr=0.02), steps=400), well(0.5)
        yield f"floor-adam-{noise}", setup.but(optimizer=spec("adam", lr=0.05), steps=400), well(0.5)
    diabetes = Setup(spec("diabetes"), spec("linear", features=10, outputs=1), "mse", spec("sgd", lr=0.1))
    yield "floor-diabetes", diabetes, well(0.7)
    yield "floor-diabetes-momentum", diabetes.but(optimizer=spec("momentum", lr=0.02)), well(0.7)
    yield "floor-diabetes-adam", diabetes.but(optimizer=spec("adam", lr=0.02)), well(0.7)
    # All pairs of (a + b) mod m: learned late, after a stretch that is nearly flat.
    late = Setup(
        spec("modular", modulus=7), spec("mlp", widths=(14, 64, 7)), "cross_entropy", spec("adam", lr=0.01), steps=400
    )
    yield "late-drop-adam", late, well(0.5)
    yield "late-drop-adamw", late.but(optimizer=spec("adamw", lr=0.005, weight_decay=0.01)), well(0.5)
    yield "late-drop-tanh", late.but(model=spec("mlp", widths=(14, 48, 7), act="tanh")), well(0.5)
    yield (
        "moons-tanh",
        Setup(spec("moons"), spec("mlp", widths=(2, 16, 16, 2), act="tanh"), "cross_entropy", spec("adam", lr=0.02)),
        well(0.3),
    )
    yield (
        "moons-silu",
        Setup(spec("moons"), spec("mlp", widths=(2, 16, 16, 2), act="silu"), "cross_entropy", spec("adam", lr=0.02)),
        well(0.3),
    )
    yield "gelu-digits", MLP.but(model=spec("mlp", widths=(64, 32, 32, 10), act="gelu")), well(0.3)
    yield "leaky-digits", MLP.but(model=spec("mlp", widths=(64, 32, 32, 10), act="leaky")), well(0.3)
    yield (
        "sigmoid-digits",
        MLP.but(model=spec("mlp", widths=(64, 32, 10), act="sigmoid"), optimizer=spec("adam", lr=0.02)),
        well(0.3),
    )


def rates() -> Configurations:
    """Between half and one times the limit on a quadratic, edge of stability, catapults."""
    for optimizer in ("sgd", "momentum", "nesterov"):
        for share in (0.25, 0.5, 0.6, 0.75, 0.9):
            yield f"{optimizer}-{share}", quadratic(optimizer, BOWL, of_limit=share), well(0.05)
    for optimizer, lr in (("adam", 0.1), ("rmsprop", 0.02), ("adamw", 0.1), ("nadam", 0.1)):
        yield f"{optimizer}-quadratic", quadratic(optimizer, BOWL, lr=lr), well(0.05)
    digits = Setup(
        spec("digits", rows=300, one_hot=True),
        spec("mlp", widths=(64, 32, 10), act="tanh"),
        "mse",
        spec("sgd"),
        steps=400,
    )
    for share in (0.7, 1.0, 1.3, 1.8):
        yield f"edge-digits-{share}", digits.but(optimizer=spec("sgd", of_limit=share)), well(0.4)
    for share in (0.5, 0.8):
        yield f"edge-momentum-{share}", digits.but(optimizer=spec("momentum", of_limit=share)), well(0.4)
    yield "edge-adam", digits.but(optimizer=spec("adam", lr=0.003)), well(0.4)
    wide = digits.but(data=spec("digits", rows=200, one_hot=True), steps=300)
    for width, shares in ((32, (2.5, 3.0, 3.5, 4.0)), (256, (1.6, 2.0, 2.5, 3.0))):
        for share in shares:
            model = spec("mlp", widths=(64, width, 10))
            yield f"catapult-{width}-{share}", wide.but(model=model, optimizer=spec("sgd", of_limit=share)), well(0.4)


def schedules() -> Configurations:
    for name, setup in (("mlp", MLP), ("adam", ADAM), ("conv", CONV)):
        for periods in (2, 4):
            yield (
                f"restarts-{name}-{periods}",
                setup.but(schedule=spec("restarts", periods=periods), steps=300),
                well(0.4),
            )
        yield f"warmup-long-{name}", setup.but(schedule=spec("warmup", share=0.4), steps=300), well(0.4)
        yield f"step-{name}", setup.but(schedule=spec("step"), steps=300), well(0.4)
        yield f"decay-late-{name}", setup.but(schedule=spec("decay", start=200, rate=0.93), steps=300), well(0.4)


def starts() -> Configurations:
    """Fine-tuning from a converged model, and runs that go on long after convergence."""
    for name, setup in (("mlp", MLP), ("adam", ADAM), ("tanh", TANH), ("conv", CONV)):
        gentle = 0.3 if name != "adam" else 0.1
        lr = setup.optimizer["lr"] * gentle
        tuned = setup.but(inject=(spec("pretrain", updates=300),), optimizer=setup.optimizer.but(lr=lr))
        yield f"fine-tuning-{name}", tuned, well(1.0)
    regression = Setup(spec("diabetes"), spec("linear", features=10, outputs=1), "mse", spec("sgd", lr=0.1), steps=600)
    yield "converged-linear", regression, well(0.7)
    yield "converged-quadratic", quadratic("sgd", BOWL, of_limit=0.5).but(steps=600), well(0.01)
    yield "converged-adam", ADAM.but(batch=None, steps=600), well(0.1)
    yield (
        "converged-cancer",
        Setup(CANCER, spec("linear", features=30, outputs=2), "cross_entropy", spec("momentum", lr=0.1), steps=600),
        well(0.3),
    )


def structures() -> Configurations:
    for scale in (0.0, 1.0):
        residual = spec("residual", features=64, width=24, depth=3, outputs=10, scale=scale)
        yield f"residual-momentum-{scale}", MLP.but(model=residual), well(0.4)
        yield f"residual-adam-{scale}", ADAM.but(model=residual), well(0.4)
    for rank in (2, 4):
        adapted = spec("adapters", widths=(64, 48, 10), rank=rank)
        yield f"adapter-momentum-{rank}", MLP.but(model=adapted), well(0.4)
        yield f"adapter-adam-{rank}", ADAM.but(model=adapted), well(0.4)
    for used in (2, 3):
        experts = spec("experts", features=64, width=24, outputs=10, experts=4, used=used)
        yield f"experts-momentum-{used}", MLP.but(model=experts, steps=400), well(0.5)
        yield f"experts-adam-{used}", ADAM.but(model=experts, steps=400), well(0.5)
    game = Setup(spec("game"), spec("two_player"), "value", spec("sgd", lr=0.1), judge="value_square")
    yield "game-sgd", game, spec("well", below=0.5)
    yield "game-momentum", game.but(optimizer=spec("momentum", lr=0.05, momentum=0.5)), spec("well", below=0.5)
    yield "game-adam", game.but(optimizer=spec("adam", lr=0.02)), spec("well", below=0.5)
