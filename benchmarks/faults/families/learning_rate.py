"""Learning rates and momentum against the exact limit: unstable, bouncing, too small, never settling."""

from collections.abc import Iterator

from ..spec import Case, Setup, spec

WELL = spec("mlp", widths=(64, 32, 10), act="tanh")
DIGITS = spec("digits", rows=500)
CANCER = spec("breast_cancer")
# Four curvatures within a factor ten: nothing is hard about this quadratic but the learning rate.
BOWL = spec("spectrum", eigenvalues=(1.0, 0.6, 0.3, 0.1))
LONG = spec("spectrum", eigenvalues=(1.0, 0.5, 0.2, 0.05, 0.02))


def quadratic(optimizer: str, data=BOWL, **options: object) -> Setup:
    outputs = len(data["eigenvalues"])
    return Setup(data, spec("linear", features=outputs, outputs=1, bias=False), "mse", spec(optimizer, **options))


def cases() -> Iterator[Case]:
    yield from above_limit_quadratic()
    yield from above_limit_networks()
    yield from momentum_past_limit()
    yield from bouncing()
    yield from adaptive_too_large()
    yield from noise_ball()
    yield from too_small()
    yield from never_settles()


def above_limit_quadratic() -> Iterator[Case]:
    for name, momentum in (("sgd", None), ("momentum", 0.9), ("nesterov", 0.9)):
        options = {} if momentum is None else {"momentum": momentum}
        for rung, times in enumerate((1.02, 1.05, 1.2, 2.0), 1):
            setup = quadratic(name, of_limit=times, **options)
            yield Case(
                "lr-above-limit",
                f"{name}-{times}",
                setup,
                rung,
                quadratic(name, of_limit=0.5, **options),
                ("lr-unstable",),
                ("learning-rate",),
            )


def above_limit_networks() -> Iterator[Case]:
    """Networks may leave a region that is too curved for the step (a catapult); these do not get away with it."""
    networks = {
        "linear-diabetes": (
            Setup(spec("diabetes"), spec("linear", features=10, outputs=1), "mse", spec("sgd")),
            (1.03, 1.1, 1.5, 2),
        ),
        "tanh-teacher": (
            Setup(spec("teacher"), spec("mlp", widths=(8, 24, 1), act="tanh"), "mse", spec("sgd")),
            (4, 6, 9, 14),
        ),
        "relu-wine": (
            Setup(spec("wine"), spec("mlp", widths=(13, 24, 3)), "cross_entropy", spec("momentum")),
            (8, 16, 32, 64),
        ),
        "leaky-digits": (
            Setup(
                spec("digits", rows=500, one_hot=True),
                spec("mlp", widths=(64, 32, 32, 10), act="leaky"),
                "mse",
                spec("sgd"),
            ),
            (4, 6, 9, 14),
        ),
    }
    for name, (setup, ladder) in networks.items():
        for rung, times in enumerate(ladder, 1):
            optimizer = setup.optimizer
            yield Case(
                "lr-above-limit-networks",
                f"{name}-{times}",
                setup.but(optimizer=optimizer.but(of_limit=times)),
                rung,
                setup.but(optimizer=optimizer.but(of_limit=0.5)),
                ("lr-unstable",),
                ("learning-rate",),
                may=("lr-oscillation", "saturated-units", "dead-units"),
            )


def momentum_past_limit() -> Iterator[Case]:
    """The learning rate suits gradient descent; Nesterov's momentum takes it past its own, lower limit."""
    for rung, momentum in enumerate((0.8, 0.9, 0.97, 0.99), 1):
        for data, tag in ((BOWL, "bowl"), (LONG, "long")):
            yield Case(
                "momentum-past-limit",
                f"{tag}-{momentum}",
                quadratic("nesterov", data, of_gd_limit=0.85, momentum=momentum),
                rung,
                quadratic("sgd", data, of_gd_limit=0.85),
                ("lr-unstable",),
                ("momentum", "learning-rate"),
            )


def bouncing() -> Iterator[Case]:
    """Below the limit by so little that the bounce across the steepest direction outlives the run."""
    for rung, share in enumerate((0.98, 0.99, 0.995, 0.999), 1):
        for name, data in (("sgd", BOWL), ("sgd", LONG), ("nesterov", BOWL)):
            options = {"momentum": 0.9} if name == "nesterov" else {}
            tag = f"{name}-{'bowl' if data is BOWL else 'long'}-{share}"
            yield Case(
                "lr-bouncing",
                tag,
                quadratic(name, data, of_limit=share, **options),
                rung,
                quadratic(name, data, of_limit=0.5, **options),
                ("lr-oscillation",),
                ("learning-rate",),
            )


def adaptive_too_large() -> Iterator[Case]:
    """Adaptive optimizers do not diverge; they bounce by about the learning rate and hold the loss up."""
    white = Setup(
        spec("regression", rows=256, features=6, noise=0.5),
        spec("linear", features=6, outputs=1),
        "mse",
        spec("adam"),
        batch=8,
    )
    tasks = {
        "white": (white.but(optimizer=spec("adam")), (0.7, 1, 1.5, 3), 0.02),
        "teacher": (
            Setup(spec("teacher"), spec("mlp", widths=(8, 24, 1), act="tanh"), "mse", spec("adam"), batch=32),
            (0.35, 0.5, 0.8, 1.2),
            0.01,
        ),
        "diabetes": (
            Setup(spec("diabetes"), spec("linear", features=10, outputs=1), "mse", spec("rmsprop")),
            (0.2, 0.5, 1, 3),
            0.02,
        ),
        "nadam": (white.but(optimizer=spec("nadam")), (0.8, 1, 1.5, 3), 0.02),
    }
    for name, (setup, ladder, good) in tasks.items():
        for rung, lr in enumerate(ladder, 1):
            yield Case(
                "adaptive-too-large",
                f"{name}-{lr}",
                setup.but(optimizer=setup.optimizer.but(lr=lr)),
                rung,
                setup.but(optimizer=setup.optimizer.but(lr=good)),
                ("lr-oscillation", "lr-unstable"),
                ("learning-rate",),
                may=("saturated-units",),
            )


def noise_ball() -> Iterator[Case]:
    """Small batches of a noisy regression: the step is stable, but the noise it lets in holds the loss up."""
    for data, tag in ((spec("regression", rows=256, features=6, noise=0.5), "white"), (spec("diabetes"), "diabetes")):
        features = 6 if tag == "white" else 10
        setup = Setup(data, spec("linear", features=features, outputs=1), "mse", spec("sgd"), batch=8)
        for rung, share in enumerate((0.5, 0.6, 0.7, 0.8), 1):
            yield Case(
                "noise-ball",
                f"{tag}-{share}",
                setup.but(optimizer=spec("sgd", of_limit=share)),
                rung,
                setup.but(optimizer=spec("sgd", of_limit=0.05)),
                ("lr-oscillation", "lr-unstable"),
                ("learning-rate",),
            )


def too_small() -> Iterator[Case]:
    tasks = {
        "digits-sgd": (Setup(DIGITS, WELL, "cross_entropy", spec("sgd", lr=0.5), batch=64), 0.5),
        "digits-adam": (Setup(DIGITS, WELL, "cross_entropy", spec("adam", lr=0.01), batch=64), 0.01),
        "quadratic": (quadratic("sgd", of_limit=0.5), None),
        "cancer-momentum": (
            Setup(CANCER, spec("linear", features=30, outputs=2), "cross_entropy", spec("momentum", lr=0.1)),
            0.1,
        ),
        "cnn": (
            Setup(
                spec("digits", rows=300, shape="image"),
                spec("cnn", channels=4),
                "cross_entropy",
                spec("momentum", lr=0.05),
                batch=32,
                steps=200,
            ),
            0.05,
        ),
        "wine-adamw": (
            Setup(spec("wine"), spec("mlp", widths=(13, 24, 3), act="tanh"), "cross_entropy", spec("adamw", lr=0.01)),
            0.01,
        ),
        "gru": (
            Setup(
                spec("digits", rows=300, shape="rows"),
                spec("gru", features=8, hidden=16, outputs=10),
                "cross_entropy",
                spec("adam", lr=0.02),
                batch=32,
                steps=200,
            ),
            0.02,
        ),
    }
    for name, (twin, good) in tasks.items():
        for rung, divisor in enumerate((30, 100, 300, 1000), 1):
            change = {"of_limit": 0.5 / divisor} if good is None else {"lr": good / divisor}
            setup = twin.but(optimizer=twin.optimizer.but(**change))
            yield Case("lr-too-small", f"{name}-{divisor}", setup, rung, twin, ("lr-too-small",), ("learning-rate",))


def never_settles() -> Iterator[Case]:
    """Momentum whose memory is as long as the run: the puck passes the valley again and again."""
    digits = Setup(
        spec("digits", rows=400, one_hot=True),
        spec("mlp", widths=(64, 24, 10), act="tanh"),
        "mse",
        spec("momentum", lr=0.05),
    )
    diabetes = Setup(spec("diabetes"), spec("linear", features=10, outputs=1), "mse", spec("momentum", lr=0.03))
    common = (0.99, 0.995, 0.998, 0.9995)
    for name, good, ladder in (
        ("bowl", quadratic("momentum", BOWL, lr=0.05), common),
        ("diabetes", diabetes, common),
        ("digits", digits, (0.997, 0.998, 0.999, 0.9995)),
    ):
        for rung, momentum in enumerate(ladder, 1):
            twin = good.but(optimizer=good.optimizer.but(momentum=0.9))
            setup = good.but(optimizer=good.optimizer.but(momentum=momentum))
            yield Case(
                "momentum-never-settles", f"{name}-{momentum}", setup, rung, twin, ("lr-oscillation",), ("momentum",)
            )
