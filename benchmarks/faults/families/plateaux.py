"""Plateaux: no gradient at all, or hardly any, by a mechanism that has a name."""

from collections.abc import Iterator

from ..spec import Case, Setup, spec
from .learning_rate import DIGITS


def cases() -> Iterator[Case]:
    yield from hard_threshold()
    yield from zero_one()
    yield from logistic_least_squares()
    yield from double_softmax()
    yield from stacked_sigmoids()


def hard_threshold() -> Iterator[Case]:
    """Units with a step for an activation: what lies before them gets exactly no gradient."""
    cancer, moons = spec("breast_cancer"), spec("moons")
    ladder = (
        ("sign", (32,)),
        ("threshold", (32,)),
        ("sign", (24, 24)),
        ("threshold", (24, 24, 24)),
        ("compare", (32,)),
    )
    for rung, (act, hidden) in enumerate(ladder, 1):
        for data, features, outputs, tag in (
            (DIGITS, 64, 10, "digits"),
            (cancer, 30, 2, "cancer"),
            (moons, 2, 2, "moons"),
        ):
            widths = (features, *hidden, outputs)
            setup = Setup(data, spec("mlp", widths=widths, act=act), "cross_entropy", spec("sgd", lr=0.2))
            dead = tuple(f"{2 * i}." for i in range(len(hidden)))
            cut = act == "compare"  # a comparison also cuts the graph: either name is right
            kinds, causes = ("zero-gradient", "wiring")[: 1 + cut], ("hard-threshold", "detached")[: 1 + cut]
            yield Case(
                "hard-threshold",
                f"{tag}-{act}-{len(hidden)}",
                setup,
                rung,
                setup.but(model=spec("mlp", widths=widths, act="tanh")),
                kinds,
                causes,
                spec("zero-gradient", layers=dead),
            )


def zero_one() -> Iterator[Case]:
    """The loss counts mistakes: its gradient is zero wherever it exists."""
    for rung, loss in enumerate(("zero_one_round", "zero_one_sign", "zero_one_step", "zero_one_floor"), 1):
        for name, features, optimizer in (
            ("breast_cancer", 30, spec("sgd", lr=0.1)),
            ("moons", 2, spec("adam", lr=0.01)),
        ):
            setup = Setup(
                spec(name, as_float=True),
                spec("mlp", widths=(features, 16, 1), act="tanh"),
                loss,
                optimizer,
                steps=150,
                judge="error",
            )
            yield Case(
                "zero-one-loss",
                f"{name}-{loss[9:]}",
                setup,
                rung,
                setup.but(loss="bce"),
                ("zero-gradient",),
                ("zero-one-loss",),
                spec("zero-gradient", layers=("0.", "2.")),
            )


def logistic_least_squares() -> Iterator[Case]:
    """A logistic output with squared error that starts confidently wrong: the derivative p(1-p) is tiny."""
    for rung, value in enumerate((-3.0, -5.0, -7.0, -10.0), 1):
        for name, features, lr in (("breast_cancer", 30, 0.2), ("moons", 2, 0.5)):
            setup = Setup(
                spec(name, as_float=True),
                spec("mlp", widths=(features, 16, 1), act="tanh"),
                "mse_sigmoid",
                spec("sgd", lr=lr),
                batch=None if name == "moons" else 64,
                inject=(spec("output_bias", value=value),),
                judge="mse_sigmoid",
            )
            yield Case(
                "logistic-least-squares",
                f"{name}{value}",
                setup,
                rung,
                setup.but(loss="bce"),
                ("plateau",),
                ("logistic-least-squares",),
            )
    module = Setup(
        spec("breast_cancer", as_float=True),
        spec("mlp", widths=(30, 16, 1), act="relu", last="sigmoid"),
        "mse",
        spec("sgd", lr=0.2),
        inject=(spec("output_bias", value=-6.0),),
        judge="mse",
    )
    yield Case(
        "logistic-least-squares",
        "module-6",
        module,
        3,
        module.but(loss="bce_probability"),
        ("plateau",),
        ("logistic-least-squares",),
    )


def double_softmax() -> Iterator[Case]:
    """A softmax at the end of the model and another inside the loss; the ladder is the number of classes."""
    for rung, classes in enumerate((3, 5, 7, 10), 1):
        for act, optimizer in (("tanh", spec("sgd", lr=0.3)), ("relu", spec("momentum", lr=0.05))):
            setup = Setup(
                spec("digits", rows=500, classes=classes),
                spec("mlp", widths=(64, 24, classes), act=act, last="softmax"),
                "cross_entropy",
                optimizer,
                batch=64,
                judge="error",
            )
            yield Case(
                "double-softmax",
                f"{act}-{classes}",
                setup,
                rung,
                setup.but(model=setup.model.but(last=None)),
                ("plateau",),
                ("double-softmax",),
            )


def stacked_sigmoids() -> Iterator[Case]:
    """Each sigmoid passes on at most a quarter of the gradient; deep stacks leave nothing for the first layers."""
    for rung, depth in enumerate((4, 6, 8, 12), 1):
        for data, features, outputs, loss, optimizer, tag in (
            (DIGITS, 64, 10, "cross_entropy", spec("sgd", lr=0.2), "digits"),
            (spec("breast_cancer"), 30, 2, "cross_entropy", spec("momentum", lr=0.03), "cancer"),
            (spec("teacher"), 8, 1, "mse", spec("sgd", lr=0.1), "teacher"),
        ):
            setup = Setup(
                data, spec("mlp", widths=(features, *(24,) * depth, outputs), act="sigmoid"), loss, optimizer, batch=64
            )
            twin = setup.but(model=setup.model.but(act="tanh"), inject=(spec("xavier"),))
            yield Case("stacked-sigmoids", f"{tag}-{depth}", setup, rung, twin, ("plateau",), ("vanishing-gradient",))
