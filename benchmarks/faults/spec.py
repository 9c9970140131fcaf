"""What a configuration of the benchmark is: values only, so that it can be printed, hashed, compared and sent on.

A `Setup` says how one training is built; a `Case` is a setup with its label: the fault planted in it, the twin without
that fault, and how the label is checked.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Spec:
    """A name in a registry and its keyword arguments, as a value."""

    name: str
    options: tuple[tuple[str, object], ...] = ()

    def __getitem__(self, key: str) -> object:
        return dict(self.options)[key]

    def get(self, key: str, default: object = None) -> object:
        return dict(self.options).get(key, default)

    def build(self, registry: dict[str, Callable], *args: object) -> object:
        return registry[self.name](*args, **dict(self.options))

    def but(self, **changes: object) -> "Spec":
        return Spec(self.name, tuple(sorted({**dict(self.options), **changes}.items())))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.options)})"


def spec(name: str, **options: object) -> Spec:
    return Spec(name, tuple(sorted(options.items())))


CONSTANT, PLAIN, UNDISTURBED = spec("constant"), spec("plain"), spec("none")


@dataclass(frozen=True)
class Setup:
    """One training: everything but the seed.

    `batch` None is the full batch. `inject` edits the model before the optimizer sees it, `disturb` edits single
    batches, `wiring` is the training loop. `judge` is the number by which two trainings are compared.
    """

    data: Spec
    model: Spec
    loss: str
    optimizer: Spec
    batch: int | None = None
    steps: int = 300
    schedule: Spec = CONSTANT
    inject: tuple[Spec, ...] = ()
    disturb: Spec = UNDISTURBED
    wiring: Spec = PLAIN
    judge: str = "loss"
    clip: float | None = None
    curvature_every: int | None = None

    def but(self, **changes: object) -> "Setup":
        return replace(self, **changes)


@dataclass(frozen=True)
class Case:
    """A labelled configuration.

    `kinds` and `causes`: what a diagnosis must say, any of them is right; no kinds: the run is healthy. `rung`:
    severity, 1 the weakest. `evidence`: the check in `labels.CHECKS` that the label must pass.
    `may`: kinds tolerated beside the right one because the planted fault really brings them along.
    """

    family: str
    name: str
    setup: Setup
    rung: int = 0
    twin: Setup | None = None
    kinds: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    evidence: Spec = field(default_factory=lambda: spec("worse"))
    may: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        return not self.kinds

    @property
    def key(self) -> str:
        """Directory name: readable, and another one as soon as the training changes (labels may change freely)."""
        digest = hashlib.sha256(repr((self.setup, self.twin)).encode()).hexdigest()[:8]
        return f"{self.family}--{self.name}--{digest}"


# What tuning never sees. A configuration with any of these belongs to the reporting half.
HELD_OUT = {
    "architecture": ("gru",),
    "optimizer": ("nadam",),
    "data": ("wine",),
    "family": ("decayed-early", "saturated-inputs"),
}


SALT = 349  # of 400 tried before any look: the one that splits every family most evenly


def half(case: Case) -> str:
    """ "tune" or "report": what is held out reports; the rest is split by a hash of family and name, about 55 to 45."""
    held = (
        case.setup.model.name in HELD_OUT["architecture"]
        or case.setup.optimizer.name in HELD_OUT["optimizer"]
        or case.setup.data.name in HELD_OUT["data"]
        or case.family in HELD_OUT["family"]
    )
    draw = int(hashlib.sha256(f"{SALT}/{case.family}/{case.name}".encode()).hexdigest()[:8], 16) / 16**8
    return "report" if held or draw < 0.45 else "tune"
