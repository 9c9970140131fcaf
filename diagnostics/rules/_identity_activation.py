"""Activations that pass everything on as it is.

Source: PyTorch, `nn.LeakyReLU(negative_slope=0.01, inplace=False)`: True as the first argument is a slope of 1.
"""

from collections.abc import Iterator

from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import counted
from diagnostics.run import Run


def identity_activation(run: Run) -> Iterator[Finding]:
    """Leaky ReLUs in a model whose layers were seen to be linear together."""
    layers = run.meta["linear_layers"]
    leaky = tuple(str(each["name"]) for each in run.meta["modules"] if each["type"] == "LeakyReLU")
    if not layers or not leaky:
        return
    yield found(
        "identity-activation",
        run,
        (
            f"{counted(len(leaky), 'leaky ReLU')} with a slope of 1 on both sides: everything comes through as it is. "
            f"No other non-linearity lies between the {layers} layers, which are together one linear one."
        ),
        (
            "where the True was to save memory: nn.LeakyReLU(inplace=True); the first argument is the slope below 0, "
            "usually 0.01",
        ),
        layers=leaky,
        formula=r"\max(z, 0) + a \min(z, 0) = z \quad\text{for } a = 1",
        severity=unless_it_learns(run, "warning"),
    )
