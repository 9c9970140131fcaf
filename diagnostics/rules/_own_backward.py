"""A function whose backward is not the derivative of its forward.

Source: PyTorch, "Extending torch.autograd"; the slope of the loss along a gradient is the square of its length.
"""

from collections.abc import Iterator

from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import names_of, number
from diagnostics.run import Run


def wrong_backward(run: Run) -> Iterator[Finding]:
    names, ratio = run.meta["wrong_backward"] or [[], 1.0]
    if not names:
        return
    yield found(
        "wrong-backward",
        run,
        (
            f"The backward of {names_of(tuple(names))} is not the derivative of its forward: along the gradient of "
            f"the weights behind it the loss changes {number(ratio)} times as much as that gradient says"
            f"{', so that updates lead uphill' if ratio < 0 else ''}."
        ),
        (
            "multiply grad_output by the derivative of what forward computes, and compare the two with "
            "torch.autograd.gradcheck, in float64",
            "or write the forward with PyTorch's own functions, which need no backward; where the gradient is another "
            "one on purpose, nothing is to be done",
        ),
        evidence={"slope over that of the gradient": float(ratio)},
        formula=(
            r"\frac{d\mathcal{J}(\theta + \epsilon g)}{d\epsilon} = |g|^2 \quad\text{if}\quad g = "
            r"\nabla\mathcal{J}"
        ),
        severity=unless_it_learns(run, "critical"),
    )
