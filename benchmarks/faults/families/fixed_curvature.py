"""A few configurations again with `curvature_every` given: estimates as sparse as in long runs, not as in toys."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..spec import Case

AGAIN = (
    ("lr-above-limit", "momentum-1.02"),
    ("schedule-past-limit", "jump-quadratic-2.1"),
    ("ravine-scale", "two-1000"),
    ("ravine-offset", "six-100"),
    ("lr-bouncing", "sgd-bowl-0.99"),
    ("lr-too-small", "digits-sgd-300"),
    ("deep-linear-saddle", "depth3-0.03"),
    ("near-symmetric", "teacher-1e-06"),
    ("double-softmax", "tanh-5"),
    ("dead-by-bias", "conv-0.95"),
    ("healthy-rates", "edge-digits-1.0"),
    ("healthy-rates", "momentum-0.6"),
    ("healthy-rates", "catapult-256-2.5"),
    ("healthy-regularized", "dropout-mlp-0.2"),
    ("healthy-structures", "adapter-adam-2"),
    ("healthy-structures", "residual-adam-0.0"),
    ("healthy-schedules", "restarts-adam-2"),
    ("healthy-data", "floor-diabetes-adam"),
    ("healthy-starts", "fine-tuning-tanh"),
    ("harmless-units", "confident-sigmoid"),
)
EVERY = 40


def again(cases: Sequence[Case]) -> Iterator[Case]:
    """The named ones in families of their own, so that they are counted apart."""
    named = {(case.family, case.name): case for case in cases}
    for family, name in AGAIN:
        case = named[family, name]
        setup = case.setup.but(curvature_every=EVERY)
        kind = "healthy-sparse-curvature" if case.healthy else "sparse-curvature"
        yield replace(case, family=kind, name=f"{family}-{name}", setup=setup)
