"""What a forward does that nobody meant: layers made anew each time, evaluation mode while training."""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import names_of
from diagnostics.run import Run

_GRADIENTS = Chart("line", "scalars", ("grad_norm",), "Gradient norm", log=True)


def made_in_forward(run: Run) -> Iterator[Finding]:
    owners = tuple(str(name) for name in run.meta.get("made_in_forward") or [])
    if not owners:
        return
    within = names_of(tuple(name for name in owners if name)) or "the model"
    yield found(
        "made-in-forward",
        signals.first_step(run),
        (),
        (
            f"The forward of {within} makes parameters of its own and throws them away: each call computes something "
            "else, at random, and no update ever reaches them."
        ),
        {"modules": float(len(owners))},
        ("make the layer once, in __init__, as an attribute of the module: self.out = nn.Linear(...)",),
        severity=unless_it_learns(run, "critical"),
        chart=_GRADIENTS,
    )


def left_in_evaluation(run: Run) -> Iterator[Finding]:
    """Of a run that goes on learning it is information: some tune with a norm's statistics held."""
    told = run.meta.get("evaluation") or {}
    layers = tuple(str(name) for name in told.get("modules") or [])
    if not layers:
        return
    yield found(
        "evaluation-mode",
        int(told["step"]),
        layers,
        (
            f"Since step {int(told['step'])} the model is trained in evaluation mode: {names_of(layers)} "
            "no longer see the batch. A batch norm uses the statistics that it had, however far the weights move on; "
            "dropout is off."
        ),
        {"modules": float(len(layers))},
        ("call model.train() before each epoch, and again after each evaluation",),
        severity=unless_it_learns(run, "critical"),
        chart=_GRADIENTS,
    )
