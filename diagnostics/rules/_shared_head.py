"""Answers of several numbers that are always the same one, as of heads that are one and the same module.

Source: Python, where `[module] * n` holds one object n times.
"""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.run import Run


def shared_head(run: Run, *, measured: int = 5) -> Iterator[Finding]:
    """In all that was measured: layers that only begin alike are told apart by their first gradients."""
    steps = signals.always(run, "equal_outputs", measured)
    if not len(steps):
        return
    yield found(
        "shared-head",
        run,
        (
            f"In all {len(steps)} updates that were measured, the numbers of each answer are the same one, though the "
            "loss asks for different ones: it can come no lower than where each answer is the middle of its targets."
        ),
        (
            "make each head a module of its own: nn.ModuleList([make() for _ in range(n)]), not [make()] * n, which "
            "holds one n times",
            "or look where one number is repeated: expand, repeat, or a sum that was broadcast",
        ),
        evidence={"measured updates": float(len(steps))},
        step=int(steps[0]),
        severity="warning",
    )
