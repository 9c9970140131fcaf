"""A loss of second derivatives, of a network that has none.

Source: Raissi, Perdikaris & Karniadakis 2019, whose networks are smooth for this reason.
"""

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM, LOSS
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import unless_it_learns
from diagnostics.run import Run

PIECEWISE_LINEAR = {"relu", "relu6", "leaky_relu", "hardtanh"}
SMOOTH = (
    "if the loss differentiates the network by its inputs, as that of a differential equation does, take tanh, sin or "
    "softplus: a network of ReLUs is piecewise linear, and has no second derivative"
)


def is_piecewise_linear(run: Run) -> bool:
    calls = by_layer.activations(run).values()
    return bool(calls) and {function for function, _ in calls} <= PIECEWISE_LINEAR


def no_second_derivative(kind: str, run: Run) -> Finding | None:
    """Each that the loss took, by the inputs, was zero at every point of the first batch that was looked at."""
    if not run.meta["no_second_derivative"] or not is_piecewise_linear(run):
        return None
    names = sorted({function for function, _ in by_layer.activations(run).values()})
    end = signals.loss(run).end
    return Finding(
        kind=kind,
        cause="piecewise-linear",
        severity=unless_it_learns(run, "critical", "warning"),
        first_step=signals.first_step(run),
        last_step=None,
        layers=(),
        summary=(
            "The loss takes second derivatives of the network by its inputs, and each is exactly 0 at every point: all "
            f"its units ({', '.join(names)}) are piecewise linear. Terms made of them give no gradient."
        ),
        evidence={"loss at end": end},
        remedies=(
            "take nn.Tanh, nn.SiLU, nn.Softplus or torch.sin for the hidden units: they have second derivatives",
        ),
        charts=(
            LOSS,
            GRADIENT_NORM,
        ),
        formula=r"\phi(z) = \max(0, z): \quad \phi''(z) = 0 \text{ for all } z \neq 0",
    )
