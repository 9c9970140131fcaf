"""Targets that are mirrored or turned against their inputs, as pictures and masks that were augmented one by one.

Source: `torchvision.transforms.v2`, which takes pictures and masks in one call for this reason.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import of_examples, where_to_look
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import tex
from diagnostics.run import Run


def misplaced(
    run: Run,
    *,
    looks: int = 8,  # of other examples each: their scatter is the error bar
    sure: float = 4.0,  # standard errors that targets belong to these inputs at all, in one of nine sets of placements
    errors: float = 2.0,  # standard errors that the given placement gains less than the best: it gains more where right
    answered: float = 0.5,  # a share of three in four as given: what is to be turned, as by the task, was learned
) -> Iterator[Finding]:
    """Of a run that learned little: a task may be to turn what is given, and nearly symmetric targets fit both ways."""
    steps, names, best = run.matrix("placements", "at_best")
    if len(steps) < looks or signals.has_learned(run):
        return
    given, answers = (run.matrix("placements", column)[2] for column in ("as_given", "answer_as_given"))
    belongs, less = _in_errors(best), _in_errors(given - best)
    late = answers[steps >= signals.loss(run).middle_step]
    told = (belongs > sure) & (less < -errors)
    if len(late) and told.any() and (late.mean(0)[told] < answered).all():
        gain, gained = given.mean(0), best.mean(0)
        always = told & (gain < -gained)  # as they lie they fit worse than those of others, by more than that
        at = int(np.where(always, gain, np.inf).argmin() if always.any() else np.where(told, less, np.inf).argmin())
        yield _finding(run, str(names[at]), float(gained[at]), float(gain[at]), bool(always[at]))


def _in_errors(values: np.ndarray) -> np.ndarray:
    """Mean over the looks, in its standard errors."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return values.mean(0) / (values.std(0, ddof=1) / len(values) ** 0.5)


def _finding(run: Run, placement: str, best: float, given: float, always: bool) -> Finding:
    count = int(run.matrix("placements", "examples")[2][:, 0].sum())
    if always:
        how, where = f"they fit {placement}, and less as they lie", "another place"
        remedies = (
            f"put them back: {placement}, they lie as the inputs do; look for a transpose, a flip, or "
            "[row, column] in place of [x, y], that only one of the two has gone through",
        )
    else:
        how, where = f"they fit {placement} as often as they do as they lie", "a place that is drawn anew"
        remedies = (
            "draw a random transform once for both: torchvision.transforms.v2 takes transform(image, mask), "
            "albumentations transform(image=image, mask=mask); or stack the two, transform, and take them apart",
        )
    return found(
        "misplaced",
        run,
        (
            f"Targets do not lie as their inputs do: in {count} pairs that were looked at, {how}. What is seen at "
            f"one place of the input is asked for at {where}."
        ),
        (
            *remedies,
            f"look at one batch as the loss gets it, each target beside its input.{where_to_look(run)}",
        ),
        evidence={"gain of the best placement": best, "gain as given": given},
        formula=rf"\frac{{R^2(x, t)}}{{\sum_g R^2(x, g\,t)}}:\ {tex(given)}\text{{ above chance, and of "
        rf"the best placement }}{tex(best)}",
        chart=next(iter(of_examples(run)), _fit(placement)),
    )


def _fit(placement: str) -> Chart:
    title = "Fit of targets to their inputs, above that of other targets"
    return Chart("line", "placements", ("as_given", "at_best"), title, layers=(placement,))
