"""Gradients that pile up from update to update, are thrown away before the update that they are for, or are clipped
after it.

Source: PyTorch's `backward`, which adds to `.grad`.
"""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

_SUMMED = "the loss that is recorded is the sum of all"
_OF_OTHERS = "each was of other examples"


def accumulating(
    run: Run,
    *,
    mostly: float = 0.5,  # of the updates: a loop that zeroes once an epoch forgets in all others
) -> Iterator[Finding]:
    steps, carried = signals.column(run, "carried_grad_norm")
    steps, carried = steps[1:], carried[1:]  # before the first update there was nothing to carry
    share = float((carried > 0).mean()) if len(steps) else 0.0
    if len(steps) < 3 or share < mostly:
        return
    first = int(steps[carried > 0][0])
    always = "every" if share > 0.99 else f"in {number(100 * share)} % of the updates the"
    summary = (
        f"Since step {first} {always} backward pass added to the gradient of the update before it: the loop does not "
        "zero them each time."
    )
    remedies = ("call optimizer.zero_grad() before loss.backward() in every update",)
    if run.meta["optimizer"] == "LBFGS":
        summary = (
            f"Since step {first} the backward passes of one step add up in {number(100 * share)} % of the steps: the "
            "optimizer calls the closure several times, and gets the sum of the gradients at different weights."
        )
        remedies = ("call optimizer.zero_grad() inside the closure, before its backward()",)
    yield found(
        "gradients-accumulate",
        run,
        summary,
        remedies,
        evidence={"share of updates": share, "carried gradient norm": float(carried[carried > 0][-1])},
        step=first,
        formula=(
            r"g_k = \sum_{j \le k} \nabla\mathcal{J}(\theta_j) \quad\text{instead of}\quad "
            r"\nabla\mathcal{J}(\theta_k): \; \mu = 1"
        ),
    )


def accumulation_cut_short(run: Run) -> Iterator[Finding]:
    told = run.meta["accumulated"]
    summed = told.get("summed", True)
    of_others = run.meta["trained_beside"] or run.meta["optimized_elsewhere"]  # whose passes go through the model
    if not told.get("alone") or (not summed and of_others):
        return
    passes = int(told["passes"])
    yield found(
        "accumulation-cut-short",
        run,
        (
            f"Of the {passes} backward passes before each update only the last one's gradient is left: the gradients "
            f"are zeroed between them, though {_SUMMED if summed else _OF_OTHERS}. An update follows one batch "
            f"of {passes}{', and where each loss was divided by their number it is as much shorter' if summed else ''}."
        ),
        (
            *([] if summed else ["where an update for each batch is meant, move optimizer.step() into their loop"]),
            "call optimizer.zero_grad() once an update, after optimizer.step(), and not before each backward()",
        ),
        evidence={"backward passes": float(passes)},
        formula=r"g = \nabla\mathcal{J}_k \quad\text{instead of}\quad \sum_{j=1}^{k} \nabla\mathcal{J}_j",
        severity="warning",
    )


def clipped_after_step(run: Run) -> Iterator[Finding]:
    told = signals.events(run, "late-gradients")
    if told.empty:
        return
    yield found(
        "clipped-after-step",
        run,
        (
            "The gradients are changed after the optimizer's step and before the next backward pass, where nothing "
            "reads them: clipping comes too late, and every update is made from gradients of any length."
        ),
        ("call clip_grad_norm_ between loss.backward() and optimizer.step()",),
        step=int(told["step"].iloc[0]),
        severity="warning",
    )
