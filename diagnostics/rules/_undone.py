"""Updates that are not made, or are taken back."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run


def never_steps(run: Run, *, enough: int = 30) -> Iterator[Finding]:
    """Not once. A loss scale that begins at 2^16 and halves with each overflow has found its place long before."""
    skipped, updates = (
        signals.events(run, "skipped-step"),
        signals.array(run.table("scalars", ["update_norm"]), "update_norm"),
    )
    if skipped.empty or len(updates) < enough or np.nanmax(updates, initial=0) > 0:
        return
    history = signals.loss(run)
    falls = signals.trend(history.values).z > 5 or signals.has_learned(run)
    yield found(
        "no-step",
        int(skipped["step"].iloc[0]),
        (),
        f"The optimizer made no step in {len(updates)} updates"
        + (
            ", and the loss falls all the same: another one than was given to watch moves the weights, perhaps one "
            "that is made anew in each update and begins without its averages."
            if falls
            else ": the weights stay where they are."
        ),
        {"updates without a step": float(len(updates))},
        _ANOTHER if falls else _NONE,
        severity="warning" if falls else "critical",
    )


_ANOTHER = (
    "make one optimizer before the loop, not in it, and give the same one to watch",
    "where a library wraps the optimizer, watch the one that it wraps",
)
_NONE = (
    "call optimizer.step() after loss.backward(), on the optimizer that is watched",
    "with a GradScaler: look for infinities, since it leaves out steps whose gradients are not finite",
)


def put_back(run: Run, *, all_of_it: float = 0.95, nothing: float = 0.9) -> Iterator[Finding]:
    """Projections, averages and bounds write to the weights in sound loops too, but those learn; whether a critic does,
    its loss, a difference, cannot tell."""
    steps, shares = signals.column(run, "undone")
    history = signals.loss(run)
    share, several = signals.median(shares), shares[shares >= 2]  # updates at once, as by a checkpoint
    at_times = len(several) >= 2 and shares.mean() + 2 * shares.std(ddof=1) / len(shares) ** 0.5 >= all_of_it
    if len(shares) < 3 or not (share >= all_of_it or at_times):
        return
    back = f"{number(100 * share)} % of an update is taken back"
    if share < all_of_it:
        most = number(float(several.max()))
        back = f"up to {most} updates are taken back at once, at {len(several)} of {len(shares)} looks"
    if history.end < nothing * history.start or not (history.values > 0).all():
        return
    yield found(
        "weights-put-back",
        int(steps[0]),
        (),
        (
            f"Between two updates {back}: something besides the optimizer writes to the weights, and "
            "they stay where they are."
        ),
        {"share taken back": max(share, float(shares.mean())), "measured pairs": float(len(shares))},
        (
            "look for what else writes to the weights in the loop: load_state_dict, copy_ of an average, clamp_, an "
            "initialization that is called again",
            "copy from the weights into an average, not back",
        ),
    )
