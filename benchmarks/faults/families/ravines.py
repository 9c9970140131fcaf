"""Ravines: features of unequal scale, uncentred or correlated, hidden units that are not centred, and built-in ones.

Faulty and twin both take the step that is best for the steepest direction, half the limit: what differs is how much
that step is worth along the flat directions.
"""

from collections.abc import Iterator

from ..spec import Case, Setup, Spec, spec

GD = spec("sgd", of_limit=0.5)


def linear(data: Spec, features: int, outputs: int = 1, loss: str = "mse") -> Setup:
    return Setup(data, spec("linear", features=features, outputs=outputs), loss, GD)


def cases() -> Iterator[Case]:
    yield from scale()
    yield from offset()
    yield from correlated()
    yield from sigmoid_units()
    yield from intrinsic()
    yield from crossed()


def scale() -> Iterator[Case]:
    plain = linear(spec("regression"), 2)
    for rung, ratio in enumerate((10.0, 30.0, 100.0, 1000.0), 1):
        setup = plain.but(data=spec("regression", scales=(ratio, 1.0)))
        yield Case("ravine-scale", f"two-{ratio:.0f}", setup, rung, plain, ("ravine",), ("feature-scale",))
    table = plain.but(data=spec("regression", scales=(100.0, 0.003)))
    yield Case("ravine-scale", "lecture-table", table, 4, plain, ("ravine",), ("feature-scale",))
    standard = linear(spec("diabetes"), 10)
    for rung, ratio in enumerate((10.0, 30.0, 100.0, 1000.0), 1):
        setup = standard.but(data=spec("diabetes", scales=ratio))
        yield Case("ravine-scale", f"diabetes-{ratio:.0f}", setup, rung, standard, ("ravine",), ("feature-scale",))
    # Areas near 1000 beside fractions near 0.1, as scikit-learn ships them. From zero: random weights throw such inputs
    # far into the softmax's flat region, and half the limit of the curvature there is far past the limit beside it.
    for rung, (name, features, classes) in enumerate((("wine", 13, 3), ("breast_cancer", 30, 2)), 3):
        twin = linear(spec(name), features, classes, "cross_entropy").but(inject=(spec("zero_output"),))
        setup = twin.but(data=spec(name, raw=True))
        yield Case(
            "ravine-scale", f"raw-{name}", setup, rung, twin, ("ravine",), ("feature-scale", "uncentered-inputs")
        )


def offset() -> Iterator[Case]:
    for features, tag in ((2, "two"), (6, "six")):
        plain = linear(spec("regression", features=features), features)
        for rung, shift in enumerate((3.0, 10.0, 100.0, 1000.0), 1):
            setup = plain.but(data=spec("regression", features=features, offset=shift))
            yield Case("ravine-offset", f"{tag}-{shift:.0f}", setup, rung, plain, ("ravine",), ("uncentered-inputs",))
    standard = linear(spec("diabetes"), 10)
    for rung, shift in enumerate((10.0, 30.0, 100.0), 2):
        setup = standard.but(data=spec("diabetes", offset=shift))
        yield Case("ravine-offset", f"diabetes-{shift:.0f}", setup, rung, standard, ("ravine",), ("uncentered-inputs",))


def correlated() -> Iterator[Case]:
    for features, ladder in ((2, (0.99, 0.995, 0.999, 0.9999)), (4, (0.97, 0.99, 0.999, 0.9999))):
        plain = linear(spec("regression", features=features), features)
        for rung, rho in enumerate(ladder, 1):
            setup = plain.but(data=spec("regression", features=features, rho=rho))
            yield Case(
                "ravine-correlated", f"{features}-{rho}", setup, rung, plain, ("ravine",), ("correlated-inputs",)
            )


def sigmoid_units() -> Iterator[Case]:
    """Hidden units between 0 and 1 against units between -1 and 1, on the same task at half their limits."""
    for rung, width in enumerate((16, 32, 64, 128), 1):
        for data, features, tag in ((spec("teacher"), 8, "teacher"), (spec("diabetes"), 10, "diabetes")):
            setup = Setup(data, spec("mlp", widths=(features, width, 1), act="sigmoid"), "mse", GD)
            twin = setup.but(model=spec("mlp", widths=(features, width, 1), act="tanh"))
            yield Case(
                "ravine-sigmoid",
                f"{tag}-{width}",
                setup,
                rung,
                twin,
                ("ravine",),
                ("uncentered-activations",),
            )


def intrinsic() -> Iterator[Case]:
    """White inputs, but the outputs weigh 1 to 1/ratio in the loss, with targets as much larger: every output has its
    share of the loss, and no preprocessing of the inputs helps."""
    data = spec("regression", features=4, outputs=4, noise=0.1)
    twin = Setup(data, spec("linear", features=4, outputs=4), "mse", GD)
    for rung, ratio in enumerate((30, 100, 300, 1000), 1):
        setup = twin.but(data=data.but(spread=ratio), loss=f"mse_weighted_{ratio}")
        yield Case("ravine-intrinsic", f"{ratio}", setup, rung, twin, ("ravine",), ("intrinsic",))


def crossed() -> Iterator[Case]:
    """The same ravines under momentum and Adam, which cross them: healthy."""
    for optimizer, tag in ((spec("momentum", of_limit=0.3), "momentum"), (spec("adam", lr=0.05), "adam")):
        for data, features, name in (
            (spec("regression", scales=(10.0, 1.0)), 2, "scale"),
            (spec("regression", features=4, rho=0.9), 4, "correlated"),
            (spec("diabetes", scales=5.0), 10, "diabetes"),
        ):
            setup = linear(data, features).but(optimizer=optimizer)
            yield Case("ravine-crossed", f"{tag}-{name}", setup, evidence=spec("well", below=0.8))
