"""A loss that is no lower than guessing which of C it is, log C, where nothing else is known of its targets: those of a
contrastive loss are the places of the partners in the batch, the same each time.

Source: van den Oord et al. 2018, whose bound log N - loss on the information that is shared is then 0.
"""

import math

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS
from diagnostics.rules._constant_answer import NOTHING_LEARNED
from diagnostics.rules._explained import LITTLE, Explained
from diagnostics.rules._finding import Finding
from diagnostics.rules._stretches import Flat
from diagnostics.rules._words import number, tex
from diagnostics.run import Run


def no_better_than_chance(
    kind: str,
    run: Run,
    stretch: Flat,
    *,
    within: float = 0.5,  # of the run: a network that tells anything apart at all starts in the first half
    updates: int = 100,  # fewer do not tell a slow start from a loss that stays
    worse: float = 0.02,  # farther above, it is not guessing but wrong
    moved: float = 0.1,  # since the start: a loss that came down to that number may have learned, and meet it by chance
) -> Finding | None:
    history = signals.loss(run)
    last = history.last_step
    half = int(last - within * (last - history.first_step))
    late = signals.inside(run, "loss", half, last)
    if stretch.escaped or len(late) < updates or not np.isfinite(late).all():
        return None
    mean, error = float(late.mean()), float(late.std(ddof=1) / len(late) ** 0.5)
    for chance, each_other in run.meta["chances"]:
        found = Explained(1 - mean / chance, error / chance, mean, chance)
        meant = each_other or abs(history.start - chance) < moved * chance
        if meant and found.is_nothing(LITTLE) and found.share > -worse:
            return _finding(kind, stretch, found, half, last)
    return None


def _finding(kind: str, stretch: Flat, found: Explained, half: int, last: int) -> Finding:
    choices = round(math.exp(found.constant))
    return Finding(
        kind,
        NOTHING_LEARNED,
        "warning",
        stretch.first_step,
        None,
        (),
        f"The scores tell nothing apart: from step {half} to {last} the loss is {number(found.loss)}, and guessing "
        f"which of {choices} it is has log {choices} = {number(found.constant)}.",
        {
            "loss": found.loss,
            "loss of a constant answer": found.constant,
            "choices": float(choices),
            "share below it": found.share,
            "its standard error": found.error,
        },
        (
            "where examples are compared with each other: is the partner of each where the loss looks for it? Of two "
            "views stacked as torch.cat([a, b]) it is N places on, of views that alternate beside it (i ^ 1)",
            "look at one row of scores before the first update: two views of one example are more alike than others, "
            "even under random weights, so that the loss should begin below that of guessing",
            "divide the scores by a smaller temperature, 0.1 say: cosines between -1 and 1 cannot tell many apart",
            "train on one batch alone: if the loss does not fall there, the scores do not depend on the inputs",
        ),
        (LOSS,),
        rf"\mathcal{{L}} = {tex(found.loss)} \approx \log {choices} = {tex(found.constant)}",
    )
