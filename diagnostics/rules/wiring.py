r"""The training loop does not do what it looks like.

## What it is
The model is fine and so is the data, but a line of the loop is missing or in the wrong place: the optimizer never
steps, gradients are never zeroed, it holds other tensors than the model uses, a layer was left out of it, sits in a
plain list where PyTorch does not look, the graph was cut, or outputs and targets differ in shape.

## What we look at
Facts, not statistics, each seen on the thing itself:

- *gradients*: is the old one still there when a new backward pass begins right after an update; is what earlier passes
  of an accumulation left gone; are they written to after the optimizer read them; has the loss the slope that they say;
- *tensors*: are the optimizer's the model's; does each that gets a gradient change; does the loss depend on one that
  gets none; do frozen ones hold what they were initialized with; are they lost to rounding in half precision;
- *updates*: are there any; are gradients clipped while a scaler holds them larger; do they go against the gradient;
  does anything else take them back, in a run that learns nothing; does the optimizer forget its averages;
- *shapes*: is the loss the mean over all pairs; does a view give the output or an input its sizes in another order;
  does a softmax, a norm or a recurrence run along another axis than that of what it is of; is a norm of one number or
  two, or one norm of places that differ; do the edges of all graphs lie in the first;
- *the forward*: does it make parameters and throw them away, run in evaluation mode, see the tokens it is to predict,
  or the padding alone; do answers change when examples change places; does dropout follow the last layer, or drown the
  answers; do the sines of hidden layers turn many times; have derivatives that are added to the loss a graph; does
  z + (q - z) lack its detach; is a state cut at every step, or handed on to none; does the policy's term train the
  critic, is its entropy lowered; are next states the states, and do actions come with the states they were chosen in;
- *what the loss is given*: are log-probabilities some, targets of a binary cross-entropy probabilities; does it fall
  below 0 as fast as ever; do strangers become as alike as partners; are pairs that are pulled together the less alike
  ones; do targets that are trained shrink with it; does one of its terms pull too little to be learned;
- *data*: are all targets of one class, or those of a batch far more alike than all of them while the loss comes back to
  that of one answer to all; do maps lie as the pictures do that they belong to; do examples that are
  summed up in turn lie in an order; do features become tenfold larger or smaller together; are all examples of a batch
  one, or few in all, all texts one token, all inputs of a layer zero.

## Why it happens
*Gradients accumulate*: `loss.backward()` *adds* to `.grad`. Without `zero_grad` the update uses
$\sum_{j\le k}\nabla\mathcal J(\theta_j)$ instead of $\nabla\mathcal J(\theta_k)$, which is momentum with $\mu = 1$: as
the lecture says, such a puck conserves its energy and never settles. L-BFGS calls its closure several times a step, and
each time needs the gradient at other weights.

*Accumulation cut short*: the passes of an accumulation add up in `.grad` until the update. What `zero_grad` removes
between two of them is gone, and the update follows the last batch alone.

*Stale parameters*: an optimizer made before the model was moved, copied or re-created updates tensors nobody reads;
and so does one whose model is replaced by a copy on the way.

*Not in optimizer*: a layer that the optimizer was not given stays as it was initialized.

*Frozen random*: what is frozen at its random start gives random features, and not what trained weights would find.

*Unregistered*: `model.parameters()` finds parameters and modules that are attributes, not those in a plain list or
dict, nor what `.to()` made of a parameter; these stay as they were initialized.

*Weights put back*: what is written to the weights between two updates, such as an average, a checkpoint or a bound,
takes the place of what the update did.

*Clipped after step*: an update is made from the gradients as they are when the optimizer reads them, and the next
backward pass begins with new ones.

*Clipped scaled*: a GradScaler multiplies the loss, and so all gradients, by thousands, and takes that out in its own
step. Until then a threshold that is meant for the gradient cuts off nearly all of it.

*Detached*: a tensor that was cut from the graph is a constant, and nothing before it has a derivative; so is the place
of the largest number, which changes in jumps.

*Wrong backward*: autograd multiplies what `backward` returns with the derivatives of all functions before, and takes
it on trust. A factor or a sign that it leaves out is left out of the gradient of every weight behind it.

*Gradient withheld*: of a sum of losses each part needs its backward pass, and `zero_grad` between two of these throws
the first one's away. What only that part depends on, as a task's own head, then stays as it was initialized.

*No step*: weights change in `optimizer.step()` alone, and it has to be the same optimizer each time: momentum and the
averages of Adam begin at zero in a new one, and `watch` sees nothing of what it does.

*State unstored*: `m = b1 * m + (1 - b1) * grad` makes a new tensor, and the one in `optimizer.state` stays zero. Each
step is then made of one gradient, as Adam's of $0.1\,g / \sqrt{0.001\,g^2}$: three rates long, whatever the gradient.

*State lost*: Adam's first step is $\hat m/\sqrt{\hat v} = g/|g|$, a whole rate for every weight, whatever its gradient
says and however noisy it is. Averages of many steps make it shorter where gradients disagree; one that forgets them
goes on making first steps.

*Uphill*: the gradient points to where the loss grows fastest, and an update has to go against it. One wrong sign in an
optimizer's step, as of its momentum, which is ten gradients long, and each update makes the loss larger.

*Shapes broadcast*: a column of $N$ outputs less a row of $N$ targets is an $N \times N$ matrix, and its mean square is
smallest where every output is the mean of the targets. So it is with `q[:, a]`, which takes the columns that all rows
ask for from each row; `q.gather(1, a[:, None])` takes one from each. A column of log-probabilities times a row of
advantages has the product of the two means for its own. And one answer, as of a graph network that was not told which
nodes are whose, or a sum over all examples, is repeated for all targets.

*Scrambled view*: `view` and `reshape` deal out the numbers in the order in which they lie in memory, whatever the
sizes mean. Where a transpose was meant, as of scores with classes before the positions, targets meet outputs of
others; and so they do where outputs $(T, N)$ and targets $(N, T)$ are each made one row. An image $(H, W, C)$ that is
viewed as $(C, H, W)$ has a third of its rows in each channel, all colours mixed. Where the examples come last,
$(H, W, N)$, a view as $(N, H, W)$ makes each of one pixel of many examples. A list of edges $(E, 2)$ that is viewed as
$(2, E)$ joins the first node of each edge with that of one half the list further on.

*Edge offset*: graphs are put together as one, in which the nodes of the second follow those of the first. Edges that
still count from 0 all lie in the first one.

*Softmax axis*: a softmax makes numbers compete that lie along its axis. Along the width of an image the pixels of a row
share out each class among themselves, where the classes should share out each pixel. Along the queries of attention
each place shares itself out among those that may look at it, and how much of it one gets depends on what comes after.

*Along batch*: recurrent nets and attention take the first dimension for time, and with `batch_first=True` the second.
Along the batch the state goes from example to example, whose order means nothing.

*Order unused*: a recurrent net hands a state on from step to step, and what it learned of their order is lost where
they are shuffled. Read along the batch, whose order means nothing, there is nothing to learn of it.

*Rows scaled*: columns in different units are brought to one scale each by itself, over the examples. Divided by its own
length, an example becomes its largest column, whose size is lost, and small fractions.

*By place*: examples come in any order, and their places in a batch mean nothing. What depends on them, as an encoding
of positions along the batch does, is noise to the answer, and what was to be encoded is missing.

*Lost to rounding*: the numbers of bfloat16 lie $2^{-8}$ of their size apart, those of float16 $2^{-11}$. What is added
to a weight and smaller than half of that is rounded away, in every update anew: small steps in one direction never add
up.

*Norm of one*: a norm subtracts the mean of its numbers and divides by their deviation. The mean of one is itself.

*Norm of two*: of two numbers the deviation is half their difference, and divided by it each is $\pm 1$: which one was
larger is all that is left.

*Norm across batch*: a cosine is of two vectors of length 1 each. Divided by the numbers of other examples, a vector is
short where the batch is large, and so are all scores.

*Shared norm*: a batch norm keeps one running mean and deviation. Used at several places it trains with each one's own,
and in evaluation gives all of them the mean of these.

*Class weights*: $\sum_n w_{t_n} \mathcal L_n$ gives a class the pull of $w_c n_c$ examples. Weights that are to balance
the classes are the inverses of their numbers; frequencies themselves, or inverses in the wrong order, square the ratio.

*Norm epsilon*: a norm divides by $\sqrt{\sigma^2 + \epsilon}$. Where $\epsilon$ is the larger one, what is small stays
small, and layer by layer the signal dies away as without norms.

*Short memory*: $\hat\mu \leftarrow (1-m)\hat\mu + m\mu$, with the batch's $\mu$. In evaluation a batch norm works
with $\hat\mu$, and with a large $m$ that is one batch's, whose noise every answer has.

*Identity activation*: layers that are linear, with nothing else between them, are one linear layer.

*Many periods*: a sine of an angle that is spread over many periods keeps nothing of which examples were alike: the
angles of two that are close differ by turns. In the first layer that is how frequencies are chosen; in a second one,
whose $\omega$ its weights were not divided by, it is done again to each of them.

*Log scores*: `nll_loss` is $-z_t$, the target's entry. Only the normalization of a log-softmax makes it fall where the
other scores do; without it all scores grow for ever, and along another dimension, as the batch, it compares the wrong
ones. `kl_div` takes its first argument for log-probabilities: of probabilities $-t_i p_i$ is least where the largest
entry of the target has all. `ctc_loss` adds up, over all ways to write a text, what such entries make of each.

*Targets outside*: $-t\log p-(1-t)\log(1-p)$ is positive for $0\le t\le 1$; with a label of $-1$ or 2 one of its terms
changes its sign, and the surer the output, the lower the loss, without end. In an overlap
$\sum p\,t / (\sum p + \sum t)$ masks of 255 count what is found 255 times, and what is found where nothing is once. The
losses of pairs and `soft_margin_loss` take labels of 1 and $-1$; one of 0 adds to them what has no gradient, or pulls
both ways.

*No floor*: a score that is only to grow, as a critic's without a penalty, a log-likelihood that is added where it
should be subtracted, or a log determinant of the wrong sign, is lowered by larger weights whatever the data are.

*In order*: a batch's gradient stands for that of all data if its examples were drawn at random. A batch of one class
asks for that class whatever the input, and the next batches undo what it taught. A batch norm takes out what the
examples of a batch have in common, which then is their class.

*Batch order*: `cumsum` and `logcumsumexp` give each example the sum over all before it. In a partial likelihood these
are those that lived longer, in a batch that is sorted by time; in a shuffled one they are any.

*Misplaced*: a random flip or turn that is drawn for a picture, and once more for its mask, puts the mask elsewhere. All
that such masks have in common is where masks lie on average, and that is what is learned. It is the same where rows and
columns are exchanged in one of the two.

*Inputs change*: `x /= 255` writes to the array that `x` is a view of, and each epoch divides what is stored once more;
`x += noise` adds to it, and after $k$ epochs the variance of the noise is $k$ times that of one.

*One example*: a list of an array that is reused holds it many times over; in an array of integers all below 1 is 0.

*Few examples*: a sampler draws places in the data. One that was given a weight for each of 5 classes, in place of one
for each example, draws from the first 5 examples.

*One class*: `mask / 255` as an integer is 0 nearly everywhere, and so is the label of a file that was not found. The
bias of the last layer alone brings such a loss to 0, and all looks well.

*One token*: a word that is not in the vocabulary, as written in capitals, becomes the token for unknown words. Where
that happens to all, no text tells anything.

*Shared head*: `[nn.Linear(8, 1)] * 4` is one layer in four places. All four answers are one number, and the gradient
of its weights is the sum of what the four targets ask for.

*Zero inputs*: the gradient of a weight is the error times what the weight multiplies. A layer that is given zeros
alone, as a placeholder for data would be, learns nothing but its bias.

*Read at start*: the reverse direction of a recurrent net begins at the end of a sequence. At the last place, where
`y[:, -1]` is read, it has seen one input, while the end of its way is at the first place.

*Made in forward*: a layer that `forward` makes is a new one, with other random weights, in every call.

*Looks ahead*: without a causal mask a position attends to all others, the one after it included. Where that is its
target, copying it is all there is to learn, and at generation it is not there yet.

*Shifted twice*: labels that are one place on, shifted again, are two places on, and the token between is never asked
for.

*Unshifted*: where an answer's target is the token at its own place, which a causal model may read, there is nothing to
predict.

*Mask inverted*: attention over the padding alone is the same for every text.

*Unused*: what the loss does not depend on has no derivative at all, and stays as it was initialized.

*Dropout on output*: what dropout sets to 0 is an answer of 0, and what it lets through is $1/(1-p)$ times the answer.
A squared error is then least at $1 - p$ of the target, and the share $p$ of its square is left of it.

*Dropout noise*: dropout adds to a number noise with $p / (1 - p)$ times its square for variance: nine times at 0.9.

*Drawn without gradient*: a number that is drawn has no derivative by its mean or probability. Written as a function of
them and of noise that nothing decides, it has (Kingma & Welling 2014).

*Straight through*: rounding, and the nearest entry of a codebook, have a gradient of 0. $z + \mathrm{detach}(q - z)$ is
q in value and hands its gradient to z; without the detach the two z cancel.

*Advantage trained*: $(R-V)\log\pi$ is to train the policy. Its derivative by $V$ is $-\log\pi$, whatever was
returned, and takes $V$ away from the returns that it is to foretell.

*Entropy lowered*: $H(\pi)$ is largest where a policy does everything alike, and a loss that holds $-\beta H(\pi)$ keeps
it trying. With a plus, what the policy happens to prefer at its start becomes all it does.

*Same states*: an environment that writes each state to one array gives the same array before and after a step, and
`np.asarray` copies nothing. Stored without a copy, the next state is the state.

*Acted elsewhere*: all states of a rollout that were not copied are its last one. Actions, and what they brought, are
then learned for a state in which nobody took them.

*Derivative without graph*: what `torch.autograd.grad` returns has no derivative itself unless `create_graph=True`. A
penalty of gradients or the residual of a differential equation is then a number that is added, and no more.

*State cut*: what is detached is a constant to all that comes after it. A recurrence that detaches its state at each
step has the gradient of its last step alone: $\partial h_t/\partial h_{t-1}$, by which an earlier step would learn what
to keep, is never multiplied in.

*Restarted*: $h_t = f(x_t, h_{t-1})$ holds what came before. `out, _ = rnn(x, state)` in a loop gives every step the
state that was there before the loop, and each answer is made of $x_t$ and of that alone.

*Collapsed*: a loss that asks for two views of an example to be alike, and nothing else, is least where all answers
are one. What keeps them apart is a target without a gradient beside a predictor, negatives, or a term for the variance.
Negatives do not where they are of the same class by mistake, nor where the hardest ones pull before anything is known.

*Pairs reversed*: a loss of pairs pulls those of one label together and pushes those of the other apart, and papers do
not agree which is which. Random weights keep what is alike near: a loss that pulls the farther pairs together from the
start, and does not get far, has them the other way round.

*Outweighed*: the gradient of a sum of terms is the sum of theirs, and an optimizer goes along it. Of two of very
different size it is that of the larger one but for a rounding, whatever unit that has its size from: layers that both
share are trained for the larger alone. The columns of one squared error are such terms, each counted by the square of
its unit.

*Shrinking targets*: one that a prediction is to meet, and that is trained as well, is met best where both are nothing.

*Beyond generator*: a tanh gives numbers between -1 and 1. Data that lie farther out differ from all that a generator
with such an end can make, however well it learns.

*Evaluation mode*: there a batch norm divides by the deviation of earlier batches, and dropout lets everything pass.

## What to try
The finding names the line: `optimizer.zero_grad()` before `backward()`, the optimizer made after the model is in
its final form and from `model.parameters()`, no `.detach()`, `.item()` or `.data` between the layer and the loss.

## When this is wrong
How inputs lay in memory is inferred: a series that jumps at the right places by chance could look scrambled, and one
without likeness from one step to the next never does. Attention between the examples of a batch may be meant: it is
information once anything is learned. Attention to one kind of token alone, in all layers that have a mask, and a model
that is to hand on its input one place on, are taken for mistakes. A layer that is kept out of the optimizer on purpose
should be frozen with `requires_grad_(False)`: then it is silent; one whose gradient is set to `None` for a while looks
withheld until then. A model may be tuned in evaluation mode on purpose: while it learns, that is information. Tasks
that are learned one after another on purpose are data in order, and named where each unlearns the last. A model that is
given one sequence at a time, or the nodes of one mesh, has places in its first dimension, and is named if it learns
nothing. A loop that really wants sums of all past gradients looks like a missing `zero_grad`. Optimizers that keep
float32 weights of their own or round at random lose nothing, and are not asked. Batches of one example, as for several
noisy answers to each, look like a memory of one array. The gradient of one step of a recurrence may be meant, as at a
fixed point: its other steps belong under `torch.no_grad()`. A reward whose negative is the loss, and that still grows
at the end, is taken for a loss without a floor. All labels may be of one class on purpose, as where a head waits for
other data. Weights that are put back for the next fold, task or trial are information while anything is learned in
between. Pairs that belong together though they look apart, as a question and its answer, look reversed while little is
learned of them. What is drawn and weighed by the logarithm of its probability outside of the closure looks drawn
without a gradient. A term of next to no weight may be meant. States that come again, with actions of older policies,
look like states that were overwritten. Targets that lie otherwise by the task, as a picture that is to be turned, look
misplaced while little is learned. Where numbers are only to be stored, and nothing is ever asked that lies between
them, sines may turn as often as they like. A forecast of one number for all times, random features, strong dropout, an
ascent by hand may be meant, and so may class weights that grow with frequency where a mistake in the frequent class is
the dear one.

## In the lecture
Not treated there as a fault; *Momentum* explains why $\mu = 1$ never settles. Source: PyTorch's rule that
`backward` accumulates; of rounding, Gupta et al. 2015 and Zamirai et al. 2020."""

from collections.abc import Iterator

from diagnostics.rules import _edges as edges
from diagnostics.rules import _forward as forward
from diagnostics.rules import _membership as membership
from diagnostics.rules import _shapes as shapes
from diagnostics.rules import _signals as signals
from diagnostics.rules import _wiring_explains as wiring_explains
from diagnostics.rules._accumulation import accumulating, accumulation_cut_short, clipped_after_step
from diagnostics.rules._batch_order import batch_order
from diagnostics.rules._beyond_generator import beyond_generator
from diagnostics.rules._class_weights import class_weights
from diagnostics.rules._clipped_scaled import clipped_scaled
from diagnostics.rules._collapsed import collapsed
from diagnostics.rules._detached import cancelled, detached, drawn, restarted, state_cut
from diagnostics.rules._finding import Finding
from diagnostics.rules._identity_activation import identity_activation
from diagnostics.rules._in_order import in_order
from diagnostics.rules._inputs_change import inputs_change, noise_piles_up
from diagnostics.rules._log_scores import ctc_scores, log_scores, unlogged
from diagnostics.rules._lost_updates import lost_to_rounding
from diagnostics.rules._misplaced import misplaced
from diagnostics.rules._no_floor import no_floor
from diagnostics.rules._norms import across_batch, by_epsilon, norms_of_few, shared_norms, short_memory
from diagnostics.rules._one_class import one_class
from diagnostics.rules._one_example import few_examples, one_example
from diagnostics.rules._order_unused import order_unused
from diagnostics.rules._outweighed import outweighed
from diagnostics.rules._own_backward import wrong_backward
from diagnostics.rules._policy import acted_elsewhere, advantage_trained, entropy_lowered, same_states
from diagnostics.rules._pulled import pairs_reversed
from diagnostics.rules._rows_scaled import rows_scaled
from diagnostics.rules._shared_head import shared_head
from diagnostics.rules._shrinking_targets import shrinking_targets
from diagnostics.rules._softmax_axis import other_axis, over_queries
from diagnostics.rules._targets_outside import masks_outside, targets_outside, unsigned
from diagnostics.rules._undone import never_steps, put_back, state_lost, unstored
from diagnostics.rules._uphill import uphill
from diagnostics.rules._waves import many_periods
from diagnostics.rules._zero_inputs import zero_inputs
from diagnostics.run import Run

KIND = "wiring"
RANK = 4
explains = wiring_explains.explains
TITLES = {
    "class-weights": "Class weights the wrong way round",
    "targets-outside": "Targets that the loss cannot take",
    "clipped-scaled": "Gradients clipped before they are unscaled",
    "few-examples": "A few examples, again and again",
    "same-states": "Next states that are the states",
    "acted-elsewhere": "States that the actions were not chosen in",
    "straight-through": "A straight-through estimator without its detach",
    "norm-epsilon": "Batch norms that do not normalize",
    "collapsed": "Answers that became one",
    "pairs-reversed": "Labels of pairs the other way round",
    "outweighed": "A term of the loss that is outweighed",
    "misplaced": "Targets mirrored or turned against their inputs",
    "order-unused": "A recurrent net that makes no use of order",
    "batch-order": "A running sum over examples in no order",
    "rows-scaled": "Examples scaled by themselves, in place of columns",
    "read-at-start": "A direction of a recurrent net, read where it starts",
    "beyond-generator": "Data that the generator cannot make",
    "many-periods": "Sines that turn many times",
    "edge-offset": "Edges of all graphs between the nodes of one",
}


_LOOKS = (
    never_steps, put_back, unstored, state_lost, uphill, accumulating, accumulation_cut_short, membership.stale,
    membership.unregistered, membership.unused, membership.unused_outputs, membership.left_out,
    membership.frozen_random, clipped_after_step, clipped_scaled, detached, wrong_backward, drawn, cancelled, state_cut,
    restarted, advantage_trained, entropy_lowered, same_states, acted_elsewhere, shapes.broadcast, shapes.scrambled,
    shapes.crossed, other_axis, over_queries, shapes.scrambled_inputs, edges.scrambled, edges.of_the_first,
    shapes.along_batch, shapes.by_place, norms_of_few, across_batch, by_epsilon, shared_norms, short_memory, log_scores,
    ctc_scores, class_weights, unlogged, targets_outside, masks_outside, unsigned, no_floor, in_order, batch_order,
    order_unused, rows_scaled, inputs_change, noise_piles_up, one_example, few_examples, one_class, misplaced,
    shared_head, zero_inputs, forward.made_in_forward, forward.left_in_evaluation, forward.looks_ahead,
    forward.shifted_twice, forward.unshifted, forward.padding_alone, forward.dropout_on_output, forward.dropout_noise,
    forward.derivative_without_graph, lost_to_rounding, collapsed, pairs_reversed, outweighed, shrinking_targets,
    beyond_generator, identity_activation, many_periods,
)  # fmt: skip


def check(run: Run) -> Iterator[Finding]:
    if signals.total(run) == 0:
        raise signals.Missing("scalars: no update was recorded")
    for look in _LOOKS:
        yield from look(run)
