"""Saddle points: units that are exactly or nearly alike, and deep linear nets started near zero."""

from collections.abc import Iterator

from ..spec import Case, Setup, Spec, spec
from .learning_rate import DIGITS

DENSE = Setup(DIGITS, spec("mlp", widths=(64, 24, 10), act="tanh"), "cross_entropy", spec("sgd", lr=0.3), batch=64)
DEEP = DENSE.but(model=spec("mlp", widths=(64, 24, 24, 10), act="tanh"))
CONV = Setup(
    spec("digits", rows=300, shape="image"),
    spec("cnn", channels=6, act="tanh"),
    "cross_entropy",
    spec("momentum", lr=0.05),
    batch=32,
    steps=200,
)
TEXT = Setup(spec("text"), spec("transformer", d=16), "cross_entropy", spec("adam", lr=0.01), batch=32, steps=200)
HEAD = "blocks.0.attention"


def twins(incoming: str, outgoing: str, at_least: int = 1) -> Spec:
    return spec("identical-units", incoming=incoming, outgoing=outgoing, at_least=at_least)


def cases() -> Iterator[Case]:
    yield from equal_start("zero-init", "zero-initialization", (0.0,))
    yield from equal_start("constant-init", "constant-initialization", (0.01, 0.1))
    yield from near_symmetric()
    yield from cloned()
    yield from deep_linear()
    yield from harmless()


def equal_start(family: str, cause: str, values: tuple[float, ...]) -> Iterator[Case]:
    """All weights of the named layers equal; the rung is how much of the network that is."""
    for value in values:
        attention = tuple(f"{HEAD}.{name}" for name in ("query", "key", "value", "out"))
        ladder = (
            ("attention", TEXT, attention, twins(f"{HEAD}.value", f"{HEAD}.out", 8), 1),
            (
                "transformer-mlp",
                TEXT,
                ("blocks.0.mlp.0", "blocks.0.mlp.2"),
                twins("blocks.0.mlp.0", "blocks.0.mlp.2", 20),
                2,
            ),
            ("second-layer", DEEP, ("2", "4"), twins("2", "4", 20), 2),
            ("conv", CONV, ("0", "3"), twins("0", "3", 4), 3),
            ("mlp", DENSE, ("0", "2"), twins("0", "2", 20), 4),
            ("mlp-adam", DENSE.but(optimizer=spec("adam", lr=0.01)), ("0", "2"), twins("0", "2", 20), 4),
            ("relu", DENSE.but(model=DENSE.model.but(act="relu")), ("0", "2"), twins("0", "2", 20), 4),
        )
        for name, twin, only, evidence, rung in ladder:
            setup = twin.but(inject=(spec("constant", value=value, only=only),))
            yield Case(family, f"{name}-{value}", setup, rung, twin, ("symmetry",), (cause,), evidence)


def near_symmetric() -> Iterator[Case]:
    """Equal up to a relative noise: the units part, but only after the saddle has been escaped."""
    for rung, noise in enumerate((1e-3, 1e-4, 1e-5, 1e-6), 1):
        for name, twin in (
            ("digits", DENSE.but(batch=None, optimizer=spec("sgd", lr=0.25), steps=200)),
            ("teacher", Setup(spec("teacher"), spec("mlp", widths=(8, 16, 1), act="tanh"), "mse", spec("sgd", lr=0.1))),
        ):
            setup = twin.but(inject=(spec("near_constant", value=0.1, noise=noise),))
            yield Case(
                "near-symmetric",
                f"{name}-{noise:.0e}",
                setup,
                rung,
                twin,
                ("symmetry", "saddle-point"),
                ("constant-initialization", "cloned-units"),
            )


def cloned() -> Iterator[Case]:
    for rung, copies in enumerate((2, 4, 8, 16), 1):
        for name, twin, incoming, outgoing in (
            ("mlp", DENSE, "0", "2"),
            ("second-layer", DEEP.but(optimizer=spec("adamw", lr=0.005)), "2", "4"),
            ("conv", CONV.but(model=spec("cnn", channels=20, act="relu")), "0", "3"),
        ):
            setup = twin.but(inject=(spec("clone", incoming=incoming, outgoing=outgoing, copies=copies),))
            yield Case(
                "cloned-units",
                f"{name}-{copies}",
                setup,
                rung,
                twin,
                ("symmetry",),
                ("cloned-units",),
                twins(incoming, outgoing, copies - 1),
            )


def deep_linear() -> Iterator[Case]:
    """A product of small matrices: zero is a saddle, and the nearer the start, the longer the way out."""
    for depth, ladder in ((3, (0.1, 0.03, 0.01, 0.001)), (4, (0.3, 0.2, 0.1, 0.03))):
        twin = Setup(
            spec("low_rank", strengths=(2.0, 1.5, 1.0)),
            spec("deep_linear", width=8, depth=depth),
            "mse",
            spec("sgd", lr=0.15 if depth == 3 else 0.1),
            inject=(spec("orthogonal", factor=0.7),),
        )
        for rung, scale in enumerate(ladder, 1):
            setup = twin.but(inject=(spec("orthogonal", factor=scale),))
            yield Case("deep-linear-saddle", f"depth{depth}-{scale}", setup, rung, twin, ("saddle-point",))
    twin = Setup(
        spec("teacher"),
        spec("mlp", widths=(8, 16, 1), act="tanh"),
        "mse",
        spec("momentum", lr=0.02),
        inject=(spec("xavier", factor=1.0),),
    )
    for rung, scale in enumerate((1e-3, 1e-5, 1e-6, 1e-7), 1):
        yield Case(
            "deep-linear-saddle",
            f"tanh-{scale}",
            twin.but(inject=(spec("xavier", factor=scale),)),
            rung,
            twin,
            ("saddle-point",),
        )


def harmless() -> Iterator[Case]:
    """Alike in one of the two only, or an output layer that starts at zero: training separates the units."""
    same_in = spec("same_incoming", only=("0",))
    for name, setup in (
        ("same-incoming-tanh", DENSE.but(inject=(same_in,))),
        ("same-incoming-adam", DENSE.but(inject=(same_in,), optimizer=spec("adam", lr=0.01))),
        ("same-incoming-conv", CONV.but(inject=(same_in,))),
        ("same-incoming-relu", DENSE.but(inject=(same_in,), model=DENSE.model.but(act="relu"))),
        ("zero-output-mlp", DENSE.but(inject=(spec("zero_output"),))),
        ("zero-output-adam", DEEP.but(inject=(spec("zero_output"),), optimizer=spec("adam", lr=0.01))),
        ("zero-output-conv", CONV.but(inject=(spec("zero_output"),))),
        ("zero-output-transformer", TEXT.but(inject=(spec("zero_output"),), steps=300)),
    ):
        yield Case("harmless-symmetry", name, setup, evidence=spec("well", below=0.75))
