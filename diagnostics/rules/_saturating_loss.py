"""A loss that rose to the flat end of its range: log(1 - D(G(z))), where the discriminator is sure.

Source: Goodfellow et al. 2014, "Generative Adversarial Nets", section 3.
"""

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS_AND_GRADIENT
from diagnostics.rules._finding import Finding
from diagnostics.rules._stretches import Flat
from diagnostics.rules._words import number
from diagnostics.run import Run

_LOGARITHMS = ("log", "logsigmoid", "softplus", "binary_cross_entropy", "binary_cross_entropy_with_logits")


def saturating_loss(
    kind: str,
    run: Run,
    stretch: Flat,
    *,
    near: float = 0.01,  # of the lowest loss: the end of its range, for what a plot shows
    short: float = 0.1,  # of the gradient before: it ends with the loss, and another's steepness made up for none of it
) -> Finding | None:
    """Of what is never above 0, is lowered by each update and rises all the same, as another network trains."""
    history = signals.loss(run)
    calls = signals.loss_calls(run)
    if optimizer.maximizes(run) or not run.meta["closure"] or not any(each in calls for each in _LOGARITHMS):
        return None
    if (history.values > 0).any() or not near * history.best < stretch.level:
        return None
    steps, norms = signals.column(run, "grad_norm")
    late, before = signals.median(norms[stretch.holds(steps)]), signals.median(norms[steps < stretch.first_step])
    if not late < short * before:
        return None
    left = late / before
    return stretch.finding(
        kind,
        "saturating-loss",
        (),
        f"The loss rose to {number(stretch.level)}, where it can only come nearer to 0, and its gradient is "
        f"{number(100 * left)} % of what it was: the logarithm of what another network is sure of is flat, and nothing "
        "is left to learn from.",
        {"loss": stretch.level, "gradient left": left},
        (
            "let the generator raise log D(G(z)) in place of lowering log(1 - D(G(z))): loss = "
            "F.binary_cross_entropy_with_logits(d(g(z)), torch.ones_like(d(g(z)))), steep where D is sure",
            "keep the discriminator from being sure: a smaller rate, fewer updates, noise on what it is shown, or a "
            "critic with a gradient penalty",
        ),
        LOSS_AND_GRADIENT,
        r"\frac{\partial}{\partial z} \log(1 - \sigma(z)) = -\sigma(z) \to 0, \qquad "
        r"\frac{\partial}{\partial z} \bigl(-\log \sigma(z)\bigr) = -(1 - \sigma(z)) \to -1 \quad (z \to -\infty)",
        severity="warning",
    )
