"""What else a loop that does something else makes of a run, and is not told beside it."""

from diagnostics.rules._finding import Finding

SHAPING = {  # what they do to a run can look like anything
    "gradients-accumulate", "stale-parameters", "weights-put-back", "norm-of-one", "norm-of-two", "along-batch",
    "log-scores", "targets-outside", "no-floor", "in-order", "inputs-change", "made-in-forward", "evaluation-mode",
    "mask-inverted", "one-token", "one-example", "few-examples", "wrong-backward", "state-unstored", "state-lost",
    "uphill", "norm-epsilon", "pairs-reversed",
}  # fmt: skip
_ONE_LINE = {  # seen twice: by its values, and by the targets that they meet, or by what becomes of the loss
    ("log-scores", "softmax-axis"), ("log-scores", "no-floor"), ("targets-outside", "no-floor"),
    ("stale-parameters", "not-in-optimizer"), ("few-examples", "one-class"), ("few-examples", "in-order"),
}  # fmt: skip


def explains(finding: Finding, other: Finding) -> bool:
    """A loop that sums its gradients, or trains something else, makes every later symptom."""
    if finding.cause in ("shared-norm", "short-memory"):  # seen in evaluation alone
        return False
    if finding.cause == "unused":  # not felt by the loss, but where what is left learns nothing
        return finding.alarm and other.cause == "nothing-learned"
    if other.kind == finding.kind:
        return (finding.cause, other.cause) in _ONE_LINE
    if finding.cause == "weights-put-back" and other.kind == "symmetry":  # as where a bound makes weights alike
        return other.first_step > finding.first_step
    if finding.cause in SHAPING:
        return other.kind not in {"symmetry", "non-finite"} or other.cause is None
    if finding.cause == "clipped-after-step" and other.cause == "large-step":  # which clipping in time prevents
        return True
    if finding.cause == "dropout-noise" and other.kind == "lr-oscillation":  # what is drawn holds the loss up as well
        return True
    flat = {"zero-gradient", "plateau", "lr-too-small", "ravine", "saddle-point", "local-minimum"}
    return other.kind in flat and other.cause not in {"zero-one-loss", "hard-threshold"}
