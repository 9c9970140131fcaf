"""What is said of a learning rate past the limit once it is found: its sentence, cause, evidence and remedies.

Source: lecture, "Learning Rate".
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._far_off import too_large_at_first
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._growth import Growth, Limit, reversal, undone
from diagnostics.rules._thrown import at_once_and_for_good
from diagnostics.rules._words import counted, number, tex
from diagnostics.run import Run

KIND = "lr-unstable"

CHARTS = (
    LOG_LOSS,
    Chart("stability", "curvature", ("stability",), "Stability ratio against this optimizer's limits", log=True),
)

BUDGET = (
    CHARTS[0],
    Chart(
        "line",
        "batches",
        ("noise_term", "curvature_term"),
        "Noise and curvature: unstable where they add up to 1",
        log=True,
    ),
)


def clip_at(usual: float) -> str:
    """The remedy for gradients far longer than usual."""
    return (
        f"clip the gradient norm at what was usual: torch.nn.utils.clip_grad_norm_(model.parameters(), {2 * usual:.3g})"
    )


def finding(run: Run, history: signals.Loss, grown: Growth, limit: Limit, recovered: int | None = None) -> Finding:
    """`recovered`: the last update at which the loss stood far above its start, if it came back down."""
    nonfinite, past = signals.first_nonfinite(run), limit.ratio > 1
    evidence = {
        "learning rate": limit.rate,
        "loss at start": history.start,
        "loss at end": history.end,
        "growth steps": float(grown.steps),
    }
    if np.isfinite(limit.ratio):
        evidence["stability ratio"] = limit.ratio
    if np.isfinite(grown.factor):
        evidence["gradient growth"] = grown.factor
    if undone(run, limit.ratio, grown):
        evidence["correlation of successive gradients"] = reversal(run, grown)
    if limit.noise:
        evidence["noise term"] = limit.noise
    if nonfinite is not None:
        evidence["first non-finite step"] = float(nonfinite)
    cause = _cause(run, grown, limit)
    curvature = limit.ratio - limit.noise
    by_noise = past and curvature <= 1
    budget = rf"s + \text{{noise}} = {tex(curvature)} + {tex(limit.noise)} = {tex(limit.ratio)} > 1"
    return Finding(
        kind=KIND,
        cause=cause,
        severity="critical" if recovered is None else "warning",
        first_step=limit.since,
        last_step=recovered,
        layers=(),
        summary=f"{_seen(run, grown, limit)}: {_harm(history, nonfinite, recovered)}.",
        evidence=evidence,
        remedies=_remedies(run, cause, limit),
        charts=BUDGET if by_noise else CHARTS,
        formula=budget if by_noise else limits.stability_formula(run, curvature, limit.rate) if past else "",
    )


def _harm(history: signals.Loss, nonfinite: int | None, recovered: int | None) -> str:
    start, end = number(history.start), number(history.end)
    if recovered is not None:
        worst, last = number(float(np.nanmax(history.values))), history.last_step
        return (
            f"the loss rose from {start} to {worst}, stood above twice its start until step {recovered} of {last}, "
            f"and ended at {end}"
        )
    if np.isfinite(history.end):
        return f"the loss started at {start} and ended at {end}"
    return f"the loss started at {start} and became non-finite" + (f" at step {nonfinite}" if nonfinite else "")


def _seen(run: Run, grown: Growth, limit: Limit) -> str:
    rate = number(limit.rate)
    if undone(run, limit.ratio, grown):
        return (
            f"At a learning rate of {rate} each update is undone by the next (successive gradients correlate at "
            f"{number(reversal(run, grown))})"
        )
    history = signals.loss(run)
    tall = np.where(np.isfinite(history.values) & (history.steps >= grown.onset), history.values, -np.inf)
    if trusts_its_steps(run) and tall.max() > history.start:
        worst, step = number(float(tall.max())), history.steps[np.argmax(tall)]
        return f"A step of LBFGS, which no line search bounds, took the loss to {worst} at step {step}"
    if at_once_and_for_good(run, history):
        moved, length = map(number, by_layer.first_update(run))
        return (
            f"At a learning rate of {rate} an update moved the weights by {moved}, where all of them together are "
            f"{length} long"
        )
    if not limit.ratio > 1:
        lasted = counted(grown.steps, "update")
        return f"The loss grew over {lasted} at a learning rate of {rate} since step {limit.since}"
    if limit.ruined:
        return f"The learning rate {rate} is past the largest stable one since step {limit.since}"
    if limit.ratio < 1.05:
        return f"The learning rate {rate} is just past the largest stable one since step {limit.since}"
    added = limits.passes_added(run)
    if added > 1:
        rate += f", with the gradients of {number(added)} backward passes added up,"
    largest = "largest stable one" if limit.ratio - limit.noise > 1 else "largest that batches this small allow"
    return f"The learning rate {rate} is {number(limit.ratio)} times the {largest} since step {limit.since}"


def _cause(run: Run, grown: Growth, limit: Limit) -> str:
    rate_steps, rates = optimizer.learning_rates(run)
    before = rates[rate_steps <= max(grown.onset, rate_steps[0])] if len(rates) else rates
    if len(before) and before[-1] > 1.5 * before[0]:
        return "schedule"
    curvature_term = signals.latest(run, "batches", "curvature_term")
    noisy = signals.noise_term(run) > curvature_term and limit.ratio - limit.noise <= 1
    if optimizer.momentum(run) > 0 and not optimizer.adaptive(run) and noisy:
        return "momentum"
    return "learning-rate"


def trusts_its_steps(run: Run) -> bool:
    """Whether no line search bounds the steps of an optimizer that divides by the curvature along its last ones: where
    that is nearly 0, or the noise of batches, a step has any length (Nocedal and Wright, chapter 7)."""
    return run.meta["optimizer"] == "LBFGS" and not optimizer.hyperparameter(run, "line_search_fn", None)


def _remedies(run: Run, cause: str, limit: Limit) -> tuple[str, ...]:
    if trusts_its_steps(run):
        return (
            'torch.optim.LBFGS(..., line_search_fn="strong_wolfe"): nothing else bounds the length of a step',
            "give it the same batch at every update, all of the data: it takes differences of gradients for curvature",
            "or use Adam until the loss is low",
        )
    measured = limit.ratio > 1 and not limit.ruined
    added = limits.passes_added(run)
    if added > 1 and measured:
        passes = (
            f"divide the loss by {number(added)} before each backward: the gradients of so many passes are added up"
        )
        rate = f"and set the learning rate to {number(limits.SAFETY * limit.rate * added / limit.ratio)}"
        return (passes,) if limit.ratio <= limits.SAFETY * added else (passes, rate)
    target = limits.SAFETY * limit.rate / limit.ratio if measured else limit.rate / 10
    lowered = target >= optimizer.last_rate(run)  # since, by a schedule
    first = (
        f"keep the learning rate below {number(target)} throughout"
        if lowered
        else f"set the learning rate to {number(target)}"
    )
    if not measured:
        first += " (a tenth; the limit was not measured before the loss had grown)"
    if cause == "schedule":
        return (
            f"cap the schedule's highest learning rate at {number(target)}",
            "stretch the warm-up, so that the curvature can fall before the rate rises",
        )
    if cause == "momentum":
        mu = optimizer.momentum(run)
        calmer = 1 - min(1.0, (1 - mu) * limit.ratio / limits.SAFETY)
        larger = np.ceil(limit.ratio * 2)
        batch = f", or use a batch {number(larger)} times as large" if larger <= 8 else ""
        return (f"lower the momentum from {number(mu)} to {number(calmer)}{batch}", first)
    inputs = conditioning.if_far_from_standardized(run) or too_large_at_first(run)
    return (
        *inputs,
        f"or {first}" if inputs else first,
        f"or warm up: start at {number(target / 10)} and raise it over the first updates",
        *_plain_momentum(run, limit.ratio),
        "clip gradients: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    )


def _plain_momentum(run: Run, ratio: float) -> tuple[str, ...]:
    """Heavy ball's limit 2 (1 + mu) / eta is 1 + 2 mu times Nesterov's."""
    stable = ratio < 1 + 2 * optimizer.momentum(run) and optimizer.hyperparameter(run, "nesterov", False)
    return ("or leave nesterov=True out: plain momentum is stable at this rate",) if stable else ()
