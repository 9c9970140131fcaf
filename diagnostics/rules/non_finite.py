r"""NaN or Inf from another source than the learning rate.

## What it is
The loss, a gradient or a weight became `NaN` or `Inf` although the step size fitted the curvature. Everything
computed from it afterwards is lost, so the *first* such value is the one that matters.

## What we look at
The order in which things went bad: the inputs, the output of each activation and function, the loss, the gradient
of each tensor, the weights. The first one is named, with its step, and the gradient before it where that was ten
times as long as usual. If the loss or the gradients had been growing before, it is an unstable learning rate instead.

## Why it happens
A function was asked outside its domain ($\log 0$, $0/0$, $\sqrt{-1}$, whose derivative is infinite at $0$ too), CTC was
asked for the probability of a target that its input is too short for, a number left the range of its type ($e^{89}$ in
float32, $65{,}504$ in float16), or the data held such a value already. Attention in which a mask leaves a row nothing
to see divides 0 by 0, and that nobody reads the row does not help: $0 \cdot \mathrm{NaN}$ is NaN in the gradient. In
float16 nothing below $6 \cdot 10^{-8}$ is left, neither small squared gradients nor Adam's $\epsilon = 10^{-8}$, and
it divides by 0 too.

## What to try
Keep the argument inside the domain (`clamp_min`, `log1p`, an `eps`), use the fused loss on logits
(`cross_entropy`, `binary_cross_entropy_with_logits`), or clean the batch that is named.

## When this is wrong
Steps that a gradient scaler skipped are its normal work and are not counted. A loss that is set to Inf on
purpose, as a mask, looks the same as an overflow.

## In the lecture
Not treated there. Source: IEEE 754 arithmetic, and the domains of the functions used.
"""

import re
from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM, LOG_LOSS
from diagnostics.rules._finding import Finding
from diagnostics.rules._instability_words import clip_at
from diagnostics.rules._words import number
from diagnostics.run import Run

KIND = "non-finite"
RANK = 2

_GROWN = "loss over that at the start"
_USUAL = "usual gradient norm"


def check(run: Run) -> Iterator[Finding]:
    first = signals.first_nonfinite(run)
    bad_inputs = [event for event in signals.nonfinite_events(run) if event[1].startswith("input")]
    if first is None and not bad_inputs:
        return
    step, subject, message = _first_seen(run, first)
    cause = _cause(run, step, subject)
    history = signals.loss(run)
    lost = int((~(abs(history.values) < float("inf"))).sum())
    long = _long_gradient(run, step) if cause is None else {}
    yield Finding(
        kind=KIND,
        cause=cause,
        severity="critical" if lost > 1 or first is not None else "warning",
        first_step=step,
        last_step=None if _lasts(run) else step,
        layers=(subject.split(":", 1)[1],) if subject.startswith(("weight:", "gradient:")) else (),
        summary=f"{_dated(message, step)}; {lost} of {history.count} recorded losses are not finite."
        + (" The update before followed a gradient of norm {}, where {} was usual." if long else "").format(
            *map(number, long.values())
        ),
        evidence={"first step": float(step), "losses lost": float(lost), **_grown(history, cause, step), **long},
        remedies=(
            *([clip_at(long[_USUAL])] if long else []),
            *_REMEDIES[cause](subject)[: 1 if cause is None and run.meta["closure"] else None],
        ),
        charts=(
            LOG_LOSS,
            GRADIENT_NORM,
        ),
    )


def _long_gradient(run: Run, step: int, *, times: float = 10.0, before: int = 5) -> dict[str, float]:
    """That of the last update before, if it is longer than batch noise makes one (see `cliff`), and the usual one."""
    steps, norms = signals.column(run, "grad_norm")
    known = norms[(steps < step) & np.isfinite(norms)][-50:]
    usual = signals.median(known[:-1])
    if len(known) <= before or not known[-1] > times * usual > 0:
        return {}
    return {"last gradient norm": float(known[-1]), _USUAL: usual}


def _grown(history: signals.Loss, cause: str | None, step: int) -> dict[str, float]:
    """By how much the loss had grown when its gradient was too large to be squared."""
    there = history.values[history.steps == step]
    if cause != "overflow" or not len(there) or not np.isfinite(there[0]):
        return {}
    return {_GROWN: float(abs(there[0] / history.start))}


def _dated(message: str, step: int) -> str:
    """A sentence, which is also the headline."""
    said, dated = re.subn(r"^at update (\d+):?", r"At update \1", message.rstrip("."))
    return said if dated else f"{said} (step {step})"


def _lasts(run: Run) -> bool:
    """Whether the last recorded update had it too."""
    columns = ["loss", "grad_norm", "grad_norm_unclipped"]
    last = run.table("scalars", columns)[columns].to_numpy(dtype=float)[-1:]
    return bool((~np.isfinite(last[:, 0]) | np.isinf(last[:, 1:]).any(1)).any())


def _first_seen(run: Run, first: int | None) -> tuple[int, str, str]:
    """A gradient whose square alone overflows is not searched for; the values of the next update are."""
    seen = signals.nonfinite_events(run)
    if seen and (first is None or seen[0][0] <= first + 1):
        step, subject, message = seen[0]
        return (step if first is None else min(step, first)), subject, message
    step = first if first is not None else 0
    losses, norms = (signals.inside(run, name, step, step) for name in ("loss", "grad_norm_unclipped"))
    if np.isfinite(losses).any() and np.isinf(norms).any():
        return step, "overflow:gradient", f"The gradient's norm overflowed while the loss was {losses[0]:.3g}"
    return step, "loss", "The loss or its gradient became non-finite"


def _cause(run: Run, step: int, subject: str) -> str | None:
    if subject.startswith("input"):
        return "data"
    inputs = run.table("inputs", ["step", "nonfinite"])
    if (signals.array(inputs, "nonfinite")[inputs["step"].to_numpy() <= step] > 0).any():
        return "data"
    for begins, cause in (("overflow", "overflow"), ("masked", "masked-row"), ("epsilon", "half-epsilon")):
        if subject.startswith(begins):
            return cause
    if subject.startswith(signals.DOMAIN):
        return "domain-error"
    return None


def _data(subject: str) -> tuple[str, ...]:
    return (
        "drop or repair rows that are not finite: x = x[torch.isfinite(x).all(dim=1)]",
        "check the step that makes the features (division by a zero deviation, log of a count)",
    )


def _domain(subject: str) -> tuple[str, ...]:
    function = subject.split(":", 1)[-1]
    if function == "ctc_loss":
        return (
            "keep more time steps, with smaller strides or fewer frames to a step: a target takes one for each label "
            "and one between each two that are equal",
            "or leave such examples out; zero_infinity=True does, and hides how many there are",
        )
    if function in ("std", "var"):
        return (
            "leave out batches of one row, whose deviation is 0/0: drop_last=True in the DataLoader",
            "or divide by torch.sqrt(x.var(0, correction=0) + 1e-5), which has a slope where rows are alike, too",
        )
    inside = "x.clamp(-1 + 1e-6, 1 - 1e-6)" if function in ("acos", "asin", "atanh", "erfinv") else "x.clamp_min(1e-8)"
    return (
        f"keep the argument of {function} inside its domain, for instance {inside}",
        *(
            ["compute the loss from logits: F.cross_entropy, F.binary_cross_entropy_with_logits"]
            if function.strip("_") in ("log", "div", "true_divide", "truediv", "reciprocal")
            else []
        ),
        "find the line with torch.autograd.set_detect_anomaly(True)",
    )


def _overflow(subject: str) -> tuple[str, ...]:
    if "gradient" in subject:
        return (
            "start with weights that keep the size of what they multiply, from layer to layer and from step to step of "
            "a recurrence: divide them by sqrt(fan_in), or torch.nn.init.orthogonal_",
            "normalize between layers: nn.LayerNorm, nn.BatchNorm1d",
        )
    return (
        "use a fused, shifted form: torch.logsumexp, log_softmax, F.cross_entropy on logits",
        "compute this part in float32 or bfloat16",
        "scale the inputs to unit variance",
    )


def _masked(subject: str) -> tuple[str, ...]:
    return (
        "mask keys alone, not the rows that ask: each has to see at least one place, be it itself",
        "or fill with a large negative number that is finite, torch.finfo(x.dtype).min",
    )


def _epsilon(subject: str) -> tuple[str, ...]:
    return (
        "keep the weights in float32 and compute in half precision: torch.autocast around the forward, with a "
        "GradScaler, in place of model.half()",
        "or use bfloat16, which has the range of float32; or eps=1e-4",
    )


def _unknown(subject: str) -> tuple[str, ...]:
    return (
        "find the line with torch.autograd.set_detect_anomaly(True)",
        "give monitor.step a closure, so that the first non-finite function can be named",
    )


_REMEDIES = {
    "data": _data,
    "domain-error": _domain,
    "overflow": _overflow,
    "masked-row": _masked,
    "half-epsilon": _epsilon,
    None: _unknown,
}


def gives_way(finding: Finding, *, grown: float = 1e3) -> bool:
    """A gradient's norm that overflowed for a while because the loss had grown a thousandfold is no fault by itself:
    what made it grow is, and so is what it left."""
    return finding.last_step is not None and finding.evidence.get(_GROWN, 0.0) > grown


def explains(finding: Finding, other: Finding) -> bool:
    """What is seen from the first non-finite value on follows from it."""
    if gives_way(finding):
        return False
    return other.first_step >= finding.first_step and other.kind not in {"wiring", "symmetry"}
