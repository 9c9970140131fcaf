r"""A plateau: the loss stands still.

## What it is
The loss surface is flat where the weights are: the gradient is tiny although the predictions are still wrong.

## What we look at
A loss that does not move, together with a mechanism that is seen directly: a squared error behind a logistic output
whose derivative has vanished (there a loss above 1/4 is enough, worse than answering 1/2 to everything, or one above
twice the mean derivative, which only confidently wrong outputs cost); a softmax applied twice (what the second one is
given is positive and sums to one already), or on what a sigmoid or tanh gives, or on cosines whose scale leaves a tenth
of the loss to be won at most; targets beyond what the output's activation can give, or a sigmoid of what is never
negative, which cannot say no; a loss of softmax probabilities, not of their logarithms, that are all but 0 or 1; a
softmax inside the network, as of attention, that picks one entry from the start; weights that weight decay has brought
to a fifth of what they were, or those of one layer to a hundredth that no norm makes up for, or half of all matrices to
less than a norm makes up for; inputs, as vectors, shorter than 0.05 in a network that does not scale them; targets far
from 0 and an optimizer whose steps do not grow with the error; gradients that shrink from layer to layer towards the
input, a thousandfold in all, or by more than 4 a layer while the first layer hardly moves; hidden outputs that shrink
so from the input on; weights none of which move, and which all get less than a thousandth of the gradient of a bias;
recurrent layers whose gradients show that the steps that count are given zeros; attention over tokens whose answer is
the same when they change places; a logarithm, never above 0, that rose to a hundredth of what it was with a tenth
of its gradient.
A flat loss without such a mechanism is reported as information, not as a fault - unless it is no lower than what the
same answer to every input would have on the same batches (those of an epoch that come in the same order are easy and
hard in turn, which is no progress), for half of the run and by five measured updates at least: then nothing was learned
from the inputs, which is an alarm as long as no other says why; whether all its layers are linear is said with it. So
is a start three times above that loss, or above log C of a mean cross-entropy of C classes, which takes half of the run
to come down to it, and where inputs of size 1 would have started below that, they are why. And a network whose answers
are worth less than half of what a linear model of the same inputs makes of them, and that is not catching up: the
targets follow from the inputs then, and the data are not to blame.

## Why it happens
Where the derivative of what lies between weights and loss is nearly 0, so is the gradient, however wrong the answers
are; and a gradient that says the same for every input leads to an answer that is the same for every input.

*Logistic least squares*: for a logistic output $y = \sigma(z)$, $\partial\mathcal L/\partial z = (y - t)\,y\,(1 - y)$:
for a confidently *wrong* prediction $y(1-y) \to 0$ and the worse the error, the smaller the gradient. With
cross-entropy it is $y - t$.

*Vanishing gradient*: in a stack of $L$ logistic layers each contributes a factor of at most $1/4$, so the first layer
gets about $4^{-L}$ of the gradient. Weights that shrink what they are given do the same on the way forward: of $L$
matrices that are multiplied, each one's gradient is a product of all others.

*Large step*: updates of a good part of a layer's size leave weights for which no start was chosen. What normalization
divides by, what a softmax picks and which units are on is then decided for all inputs alike, and what comes back from
the loss shrinks at every one of them, though it came through at the start.

*Read at padding*: through zeros behind a sequence a state forgets, step by step, what it read, as through many layers.

*Double softmax*: a second softmax sees inputs between 0 and 1 only, so its outputs stay close to uniform.

*Bounded scores*: cosines lie between -1 and 1. Without a scale, or with a temperature that multiplies where it should
divide, the best answer there can be is hardly better than a guess, and all that the weights do changes next to nothing.

*Hard attention*: $\partial p_i/\partial z_j = p_i(\delta_{ij} - p_j)$. The scalar product of two vectors of $d$
numbers of size 1 is of size $\sqrt d$: scores that are not divided by it, or are larger still, make one $p$ all but 1,
and queries and keys hear nothing of the error.

*Input scale*: inputs in dollars or seconds make answers thousands of times larger than the targets, and every update
of a weight moves what its unit is given by the rate times $x_j$: the first answers are far off, and later ones come no
nearer. And from $\bar w_{ij} = \bar z_i x_j$ and $\bar b_i = \bar z_i$: where $\|x\| \ll 1$ a step along the gradient
changes $z_i$ by $1 + \|x\|^2$ parts of which all but $\|x\|^2$ are the bias's, which is the same for every input.

*Crowded inputs*: a code for what is missing, as -9999, makes up the mean and the deviation of a column that is
standardized with it. The other values then differ by thousandths, and weights answer to the square of that.

*Weight decay*: it multiplies all weights by $1 - \alpha\lambda$ at every update: where that is faster than the gradient
builds them up they end near 0, and layers of such weights pass on neither signal nor gradient. Added to the gradient,
it holds them where $\nabla\mathcal J = -\lambda\mathbf w$: the loss has a slope there, and cannot follow it. Beside it,
as AdamW's, no weight grows past $1/\lambda$, where $\alpha\lambda w$ is as long as the longest step.

*Weight penalty*: $\lambda\sum_i w_i^2$ in the loss does what a decay in the gradient does. A sum over a hundred
thousand weights is large beside an error of 2, and a $\lambda$ of 0.01 that looks small is a decay of 0.02.

*Target scale*: an optimizer that divides gradients by their own size moves a weight by about $\alpha$ an update,
however large the error: answers that must come from 0 to 100,000 have a long way to go.

*Target range*: a ReLU gives no number below 0. Where targets lie there, $\partial\mathcal L/\partial z =
(y - t)\,\phi'(z)$ pushes $z$ down until $\phi' = 0$ and the answer stays 0. A class whose score it makes 0 is not asked
for any more. The numbers of a softmax sum to 1,
$e^y$ of a softplus is 1 at least, and the sigmoid of what a ReLU gives is one half.

*Nothing learned*: the best answer that ignores the input is the mean of the targets, or the shares of their classes;
biases alone find it. What a network explains beyond it is $R^2 = 1 - \mathcal{L} / \mathcal{L}_\text{constant}$. Where
$R^2$ stays at 0, the gradients of different inputs have no direction in common but that of the biases: the targets do
not follow from the inputs, or the inputs are lost on the way to the loss. A contrastive loss asks which of $C$ examples
is the partner: guessing costs $\log C$, and how far the loss is below that is what the scores know of it.

*Hardly learned*: examples that come again and again are learned by heart a little, whatever their targets are. What
follows from the inputs takes more off the loss of one answer to all, as a rule, and most of it in the first epochs.

*Below linear*: ridge regression of the targets on the inputs is fitted as the run goes, on two halves of the examples,
each of which is answered by the fit of the other, so that nothing is known by heart. Any network wide enough can do the
same and more. One that stays far behind it loses its inputs on the way, or is not trained.

*Order blind*: attention weighs tokens by what they are, and a mean over them adds them up: both are the same for the
tokens in any order. What depends on which one came first cannot be told, unless the positions are added to them.

*Start far off*: large weights in the last layers give answers far larger than any target, or a softmax that is sure of
a class at random and pays the whole distance of the logits for it. Until the weights have shrunk, nothing else counts.

*Constant value*: $\mathcal J(\theta,\theta')$ with $\theta'=\theta$ at every update, as $\log 2$ of two scores that are
one, may have a gradient by its first argument, and is the same everywhere.

*Saturating loss*: $\log(1 - \sigma(z))$, which a generator lowers whose pictures a discriminator gives the score $z$,
has the slope $-\sigma(z)$: where the discriminator is sure, none.

*Rare classes*: a network begins with even chances. Where a class is rare, the answer that fits its share alone is far
from even, and the first updates go into a bias of the last layer.

## What to try
Cross-entropy on logits instead of least squares on probabilities; remove the softmax before `cross_entropy`;
standardized inputs and targets; ReLU or tanh with normalization or residual connections instead of stacked logistic
units. Where nothing is learned from the inputs: look at one batch as the loss gets it, then train on ten examples
alone.

## When this is wrong
A run that has converged is flat too, and so is one at the floor that label noise sets; neither has one of these
mechanisms. Some runs learn after a long flat stretch: the finding ends there. Where the answers surely take a tenth off
the loss of the same answer to all, the inputs are heard, and neither decay nor short inputs nor signals that shrink are
named; a ReLU at the output is not, where nine tenths are explained, unless nine tenths of what is left are asked of
answers that are 0 and targets lie a tenth of their range below. Least squares on logistic outputs that are wrong for
less than a tenth of the run is silent. Targets outside [0, 1] or a summed squared error move the 1/4. Without a closure
a loss outside the model is not seen at work, and what it is given is judged by the functions on the way: probabilities
that a gate mixes are then not told from logits that it mixes. Where there is nothing to learn, as in pure noise,
"nothing was learned" is true and no fault of the training, and so is "hardly anything" of what can hardly be known, as
tomorrow's prices; what it can learn of noisy targets, and be it a fiftieth of their variance, is told from nothing. A
task that a network takes more than half of a run to start on is called so until it does. It is seen where the loss is
one mean squared error or cross-entropy of the model's output, with or without a closure, of a model that is called once
an update; and where there are other terms, if the targets are classes, labels or the input itself. Of any other loss
that compares one output with targets of the data, a closure shows what it would be if every example got the mean of the
answers. A term that is meant to win, as a penalty that grows, makes it true by design. A linear model is asked for
where a batch of inputs comes with one short answer each (64 numbers at most, and not as many as the input has, which
may be its reconstruction), of wide inputs groups of neighbours are averaged, and tokens are counted; noise that is
meant to be strong, as for privacy, can keep a sound network behind it.

## In the lecture
*Plateaux* ("logistic activations & least squares") and the recap ("Jacobian close to zero").
"""

from collections.abc import Iterator

from diagnostics.rules import _logistic as logistic
from diagnostics.rules import _signals as signals
from diagnostics.rules import _stretches as stretches
from diagnostics.rules._below_linear import BELOW_LINEAR, below_linear
from diagnostics.rules._by_chance import no_better_than_chance
from diagnostics.rules._constant_answer import learned_nothing
from diagnostics.rules._constant_value import constant_value
from diagnostics.rules._explained import explained
from diagnostics.rules._far_off import (
    BY_INPUTS,
    INPUT_SCALE,
    START_FAR_OFF,
    began_sure_and_wrong,
    drowned,
    never_came_back,
    worse_for_long,
)
from diagnostics.rules._finding import Finding
from diagnostics.rules._flat_causes import (
    crowded_inputs,
    distant_targets,
    saturated_softmax,
    tiny_inputs,
)
from diagnostics.rules._given import misused, near_its_bound
from diagnostics.rules._one_sided import one_sided
from diagnostics.rules._order_blind import blind_so_far, order_blind
from diagnostics.rules._read_at_padding import read_at_padding
from diagnostics.rules._saturating_loss import saturating_loss
from diagnostics.rules._sharp_softmax import hard_attention
from diagnostics.rules._unexplained import unexplained
from diagnostics.rules._vanishing import LARGE_STEP, is_of_a_vanished_signal, vanishing
from diagnostics.rules._verdict import HARDLY_LEARNED
from diagnostics.rules._weight_decay import (
    WEIGHT_PENALTY,
    behind_linear,
    decayed,
    held_by_decay,
    may_be_meant,
    penalized,
)
from diagnostics.run import Run

KIND = "plateau"
RANK = 10
OF_PACE = True
TITLES = {
    BELOW_LINEAR: "A plateau: the network stays behind a linear model",
    START_FAR_OFF: "A plateau: the answers start far off",
    HARDLY_LEARNED: "A plateau: hardly anything was learned",
    "target-range": "A plateau: outputs that cannot come to their targets",
    LARGE_STEP: "A plateau that the first updates threw the run on",
}
HEARD = 0.1  # of the loss of the same answer to all, surely gone: then not next to nothing of the inputs is passed on


def check(run: Run) -> Iterator[Finding]:
    told = list(_of_a_level(run))
    if not any(each.alarm for each in told):
        history = signals.loss(run)
        facts = (
            near_its_bound(KIND, run, history),
            blind_so_far(KIND, run, history),
            began_sure_and_wrong(KIND, run),
            _below_linear(run),
        )
        told = [each for each in facts if each] + [each for each in told if each.cause] or told
    yield from told


def _below_linear(run: Run) -> Finding | None:
    found = below_linear(KIND, run)
    return (behind_linear(KIND, run, found) or found) if found and found.alarm else found


def _of_a_level(
    run: Run,
    *,
    longest: float = 0.25,  # of the run without progress
    brief: float = 0.1,  # of the run, worse than undecided
    slope: float = 0.2,  # of the logistic's largest derivative: outputs beyond 0.05 and 0.95
) -> Iterator[Finding]:
    history = signals.loss(run)
    wrongly_given = misused(KIND, run, history) or one_sided(KIND, run, history)
    if wrongly_given is not None:
        yield wrongly_given
        return
    if history.count < 20:
        return
    wrong = logistic.wrong(history)
    if wrong.share >= brief and not _learned(run, wrong):
        found = logistic.least_squares(KIND, run, wrong, slope, first=True)
        if found is not None:
            yield found
            return
    overconfident = logistic.overconfident(run, history)
    if overconfident.share >= longest:
        found = logistic.least_squares(KIND, run, overconfident, slope)
        if found is not None:
            yield found
            return
    far_off = worse_for_long(KIND, run)
    stretch = stretches.flat(run)
    if stretch is None or stretch.share < longest:
        if far_off is not None:
            yield far_off
        return
    by_inputs = far_off if far_off is not None and far_off.cause == INPUT_SCALE else None
    by_start = by_inputs is not None or (far_off is not None and never_came_back(far_off))
    nothing = far_off if by_start else _nothing(run, stretch) or far_off
    if nothing is None and not stretch.escaped and _learned(run, stretch):
        return
    found = explained(run, stretch.first_step, stretch.last_step)
    heard = found.share - 3 * found.error > HEARD
    why = (
        logistic.least_squares(KIND, run, stretch, slope)
        or saturated_softmax(KIND, run, stretch)
        or hard_attention(KIND, run, stretch)
        or (None if heard else _shrunk(run, stretch) or tiny_inputs(KIND, run, stretch))
        or distant_targets(KIND, run, stretch)
        or read_at_padding(KIND, run, stretch)
        or by_inputs  # which make the gradient of the layer that reads them as large
        or _vanished(run, stretch, heard, far_off)
        or saturating_loss(KIND, run, stretch)
        or order_blind(KIND, run, stretch)
        or crowded_inputs(KIND, run, stretch, found)
        or nothing
        or constant_value(KIND, run, stretch)
        or held_by_decay(KIND, run, stretch, may_be_meant(run, found, heard))
    )
    if why is not None or not signals.of_both_signs(history.values[stretch.holds(history.steps)]):
        yield why or unexplained(KIND, run, stretch, found)


def _nothing(run: Run, stretch: stretches.Flat) -> Finding | None:
    return learned_nothing(KIND, run, stretch) or no_better_than_chance(KIND, run, stretch)


def _shrunk(run: Run, stretch: stretches.Flat) -> Finding | None:
    return decayed(KIND, run, stretch) or penalized(KIND, run, stretch)


def _vanished(run: Run, stretch: stretches.Flat, heard: bool, far_off: Finding | None) -> Finding | None:
    """Or answers that are far off all along: activations that are large make the gradients of later layers large."""
    by_answers = far_off is not None and far_off.cause == START_FAR_OFF
    found = vanishing(KIND, run, stretch, heard, moving=by_answers)
    return far_off if found and by_answers else found


def _learned(run: Run, stretch: stretches.Flat, *, most: float = 0.5) -> bool:
    """Level after the larger part of the untrained loss is gone: a floor, as far as the run shows."""
    untrained = signals.untrained(run)
    return untrained - stretch.level > most * abs(untrained)


def gives_way(finding: Finding) -> bool:
    return finding.alarm and "loss of a constant answer" in finding.evidence


def explains(finding: Finding, other: Finding) -> bool:
    if drowned(finding) and other.kind == "dead-units" and other.cause in BY_INPUTS:
        return True
    if gives_way(finding):
        by_inputs = finding.cause == INPUT_SCALE and other.kind in {"lr-oscillation", "lr-too-small"}
        by_weights = other.kind == "lr-too-small" and never_came_back(finding)
        return other.kind == "local-minimum" or by_inputs or by_weights
    if finding.evidence.keys() & {"largest target", "length of an input"} and other.kind in {
        "dead-units",
        "saturated-units",
    }:
        return True
    if finding.cause == LARGE_STEP and other.kind == "dead-units":
        return True
    if (
        finding.cause in ("weight-decay", WEIGHT_PENALTY)
        and finding.alarm
        and other.kind in {"dead-units", "symmetry", "zero-gradient"}
    ):
        return True  # what is left of the weights
    if finding.cause == "target-range" and other.kind == "dead-units":
        return set(other.layers) <= set(finding.layers)
    if other.kind == "dead-units":
        return finding.cause == "vanishing-gradient" and is_of_a_vanished_signal(other)
    consequences = {"saddle-point", "ravine", "lr-too-small", "local-minimum", "saturated-units", "lr-oscillation"}
    return finding.alarm and other.kind in consequences
