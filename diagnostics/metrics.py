"""The vocabulary: every recorded quantity, in which table it lives, its unit and its meaning.

The store takes its columns and types from here; units and meanings are for whoever reads a table. Nothing here may
import more than the standard library: the training side and the dashboard side both start from it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One column of one table."""

    name: str
    meaning: str
    dtype: str = "float64"  # "int64", "float32", "float64", "string" or "list" (of float64)
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """One table of a run.

    `key` names the column that tells the rows of one step apart ("layer", "feature"); `None` where a step has one row.
    """

    name: str
    row: str
    columns: tuple[Metric, ...]
    key: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


STEP = Metric("step", "number of the optimizer update, from 1", "int64", unit="updates")
OUTPUT = "output "  # and its number: a term that is one of several numbers an answer has
LAYER = Metric("layer", "name of the parameter tensor or of the activation call", "string")


def _f32(name: str, meaning: str) -> Metric:
    return Metric(name, meaning, "float32")


_TABLES = (
    Table(
        "scalars",
        "update",
        (
            STEP,
            Metric("time", "Unix time of the update", unit="s"),
            Metric("loss", "training loss of the batch, before the update"),
            Metric("lr", "learning rate of the first parameter group, of the update just made"),
            Metric("grad_norm", "Euclidean norm of the gradient the optimizer received"),
            Metric("update_norm", "Euclidean norm of the change of the weights (measured updates only)"),
            Metric("weight_norm", "Euclidean norm of the weights after the update (measured updates only)"),
            Metric("grad_norm_unclipped", "norm of the gradient before clipping, where it can be observed"),
            Metric("loss_scale", "what a GradScaler multiplied the loss by"),
            Metric("micro_batches", "backward passes that went into this update"),
            Metric(
                "carried_grad_norm",
                "least norm of the old gradient that a sentinel parameter held as a backward of this update began; of "
                "L-BFGS, as that of its second evaluation began",
            ),
            Metric(
                "overshoot",
                "r = -u'Hu/(2 g'u) of the actual update u, from two losses on the same batch: 1/2 is the "
                "minimum along u, 1 equal loss",
            ),
            Metric("gradient_cosine", "cosine of the gradients of this update and the one before it"),
            Metric("update_cosine", "cosine of the changes of the weights of this update and the one before it"),
            Metric(
                "undone",
                "share of the update before this one that was taken back between the two, along itself: 0 unless "
                "something else writes to the weights",
            ),
            Metric(
                "taken_back",
                "share of what the updates added to the weights since something else last wrote to them that was taken "
                "back before this one, where that happens every so many updates",
            ),
            Metric(
                "slope",
                "g'u of the update u and the gradient that the optimizer received: the change of its batch's loss, to "
                "first order",
            ),
            Metric("downhill", "the same of the gradient as the backward pass left it, before anybody wrote to it"),
            Metric(
                "top_projection",
                "weights after the update, relative to a fixed origin, along the last measured top eigenvector",
            ),
            Metric(
                "top_origin", "step of the curvature estimate whose eigenvector top_projection uses", unit="updates"
            ),
            Metric(
                "constant_loss",
                "loss of the batch if every input got the same answer, the best one for the targets so far; NaN where "
                "the loss is more than one comparison with targets",
            ),
            Metric(
                "linear_loss",
                "the loss that this batch would have had under a linear model of the same inputs, fitted to other "
                "examples of the batches before",
            ),
            Metric(
                "partial_loss",
                "where the loss is more than one comparison with targets: that of the model's output with targets that "
                "are classes, labels or the input itself",
            ),
            Metric("partial_constant_loss", "what constant_loss is to the loss, to partial_loss"),
            Metric(
                "answered_loss",
                "where neither is known, but the loss compares answers with targets of the data: the closure's after "
                "the update",
            ),
            Metric("averaged_loss", "the same, were the answer to each example the mean of those to all"),
            Metric("remembered_steps", "steps that the optimizer's averages are made of, by its own count"),
            Metric("target_variance", "variance of the targets of the loss, where they depend on what is trained"),
            Metric(
                "target_spread",
                "what of the variance of all targets seen so far lies within batches: near 1 if they come in random "
                "order",
            ),
            Metric("one_class", "the number of classes if all targets seen so far are of one; 0 if not"),
            Metric(
                "log_total",
                "mean size of the logarithm of the sum of what the loss takes for probabilities of classes: 0 if they "
                "are",
            ),
            Metric(
                "unreachable_fraction",
                "share of the model's outputs that cannot come to their targets: those of a last ReLU that are 0 while "
                "their gradient asks for less; those of a last sigmoid or tanh, in a squared error, whose target lies "
                "clearly outside of what it gives; those of a binary cross-entropy whose target is no probability; "
                "rows of a last softmax whose targets, compared one by one, do not sum to about 1",
            ),
            Metric(
                "unreachable_error",
                "share of the squared gradient at the outputs of a last ReLU, sigmoid or tanh that is at those which "
                "cannot come to their targets: of a squared error, as much of the loss",
            ),
            Metric(
                "cut_off_loss",
                "of the scores of classes from a last ReLU: what a mean cross-entropy is at least for those that are 0 "
                "and asked for more, by a gradient that is not passed on",
            ),
            Metric("input_sum", "sum of what the model was given in this update's last forward"),
            Metric("batch_size", "examples that it was given then, while different ones are counted", unit="examples"),
            Metric("examples_seen", "different ones so far, while they are few and no whole numbers", unit="examples"),
            Metric("equal_examples", "share of the examples that it was given then that are one and the same"),
            Metric(
                "equal_outputs",
                "1 if the numbers of each answer are all one, though the loss asks for different ones; 0 if not",
            ),
            Metric(
                "dropout_noise",
                "where dropout leaves a quarter or less: share of the difference between answers that it draws",
            ),
            Metric(
                "zero_labels",
                "where the loss is a hinge loss of one output each, and no label is -1: share of labels that are 0",
            ),
            Metric(
                "ungenerated_share",
                "of a model that is given data and what another network makes: share of these examples that lie where "
                "the last function of the other one cannot come",
            ),
            Metric("one_token", "1 if all texts of the batch are one token again and again, and padding; 0 if not"),
            Metric(
                "pair_cosine",
                "mean cosine of the two sides of each pair that the closure's loss compares by direction, as two views "
                "of one example; by distance, of two answers, the mean of 1 - d^2 / (|a|^2 + |b|^2)",
            ),
            Metric("left_cosine", "mean cosine between the first sides of different such pairs"),
            Metric("right_cosine", "mean cosine between their second sides"),
            Metric("answers_cosine", "mean cosine between answers, of length 1, to different inputs"),
            Metric(
                "running_order",
                "where the closure's loss has a running sum along the batch: rank correlation of what is summed with "
                "its place",
            ),
            Metric("running_likeness", "the same of what is summed with the next one"),
            Metric("ordered_loss", "where a recurrent net may run along the batch: the closure's loss"),
            Metric("shuffled_loss", "the same with the steps that the recurrent net reads in another order"),
        ),
    ),
    Table(
        "layers",
        "measured update, parameter tensor",
        (
            STEP,
            LAYER,
            _f32("grad_norm", "norm of the tensor's gradient; NaN where it got none"),
            _f32("weight_norm", "norm of the tensor after the update"),
            _f32("update_norm", "norm of the tensor's change in this update"),
            _f32("silent_fraction", "share of the gradient's rows (output units) that are exactly zero"),
            _f32(
                "lost_fraction",
                "of half-precision tensors: share of the entries with a gradient that the update left as they were",
            ),
            _f32("elasticity", "gradient times number, of one of the few that a parameter of the model's own holds"),
            _f32("elastic_at", "the place of that number: the one whose elasticity times size is largest"),
            _f32("elastic_size", "its size"),
            _f32("grad_missing", "1 where the trainable tensor got no gradient at all (None), else 0"),
        ),
        "layer",
    ),
    Table(
        "units",
        "measured update, activation call",
        (
            STEP,
            LAYER,
            Metric("activation", "the activation function", "string"),
            Metric("units", "number of units", "int64", unit="units"),
            _f32("dead_fraction", "share of units inactive on every input of the last >= 300 inputs per unit"),
            _f32(
                "saturated_fraction",
                "share of units whose derivative is below 5 % of its maximum on 95 % of those inputs",
            ),
            _f32("mean", "mean of the activation's output"),
            _f32("std", "standard deviation of the activation's output"),
            _f32("zero_fraction", "share of output entries that are exactly zero"),
            _f32("derivative", "mean of the activation's derivative over its maximum"),
            _f32("input_mean", "mean of the activation's input"),
            _f32("input_std", "standard deviation of the activation's input"),
            _f32("entropy", "softmax: mean entropy of a row over its maximum; attention included"),
            _f32("max_input", "largest input; of attention, the largest logit"),
            _f32("hidden", "1 where a later layer reads the activation, 0 where it is an output of the model"),
        ),
        "layer",
    ),
    Table(
        "curvature",
        "estimate",
        (
            STEP,
            Metric("eigenvalues", "largest eigenvalues of the Hessian, descending", "list"),
            Metric("residuals", "their residuals ||Hv - theta v||", "list"),
            Metric("smallest", "smallest eigenvalue of the Hessian"),
            Metric("smallest_residual", "its residual"),
            Metric("preconditioned", "largest eigenvalue of P^-1/2 H P^-1/2 (of H for SGD)"),
            Metric("preconditioned_residual", "its residual"),
            Metric("limit", "value of `preconditioned` at which this optimizer becomes unstable (s = 1)"),
            Metric("stability", "stability ratio s; unstable above 1"),
            Metric(
                "oscillation_limit",
                "value of s at which successive updates along the steepest direction turn anti-correlated",
            ),
            Metric("trace", "trace of the Hessian; cold random starts only, else NaN"),
            Metric("gradient_alignment", "share of the squared gradient in the span of the listed eigenvectors"),
            Metric("products", "Hessian-vector products spent"),
            Metric("seconds", "time spent", unit="s"),
            Metric("trace_error", "standard error of the trace"),
            Metric("frobenius", "Frobenius norm of the Hessian (cold starts only)"),
            Metric("stable_rank", "||H||_F^2 / lambda_max^2 (cold starts only)"),
            Metric("density_nodes", "nodes of the spectral density (Ritz values of the random start)", "list"),
            Metric("density_weights", "their weights, summing to 1", "list"),
            Metric(
                "condition",
                "kappa = lambda_max |u|^2 / (u'Hu) along the recent displacement u, preconditioned for adaptive "
                "optimizers; inf where u'Hu <= 0",
            ),
            Metric(
                "flat_gradient_share",
                "share of the squared gradient along curvature below lambda_max / 100, preconditioned for "
                "adaptive optimizers",
            ),
            Metric(
                "symmetry_defect",
                "|u'Hv - v'Hu| / (|Hv| |u|) of the operator's self-test; NaN if not run at this estimate",
            ),
            Metric("method", "'double backward' or 'differences'", "string"),
            Metric("start", "'cold' or 'warm'", "string"),
            Metric("dimension", "number of parameters", "int64"),
            Metric(
                "loss_spread",
                "relative spread of the closure's loss called twice on the same weights; 0 for a deterministic closure",
            ),
            Metric("gain_dc", "F(1): the optimizer's gain for a constant gradient (1/(1-mu) for heavy ball)"),
            Metric(
                "progress",
                "largest eta F(1) lambda / P: contraction per step of the steepest direction at constant gradient",
            ),
            Metric(
                "missed",
                "probability bound that the random start missed a larger eigenvalue (beyond tolerance): of a quick "
                "estimate one that the optimizer sees, of a whole one the Hessian's, from a cold start any of the list",
            ),
        ),
    ),
    Table(
        "batches",
        "bracket of an estimate on the independent batches that followed it",
        (
            STEP,
            Metric("origin", "step of the curvature estimate whose vectors are tested", "int64", unit="updates"),
            Metric("batches", "number of independent batches", "int64"),
            Metric("largest", "mean Rayleigh quotient of the top eigenvector on them: biased down"),
            Metric("largest_error", "its standard error"),
            Metric("smallest", "mean Rayleigh quotient of the bottom eigenvector on them: biased up"),
            Metric("smallest_error", "its standard error"),
            Metric("curvature_term", "curvature term of the two-term stability budget"),
            Metric("curvature_term_error", "its standard error"),
            Metric("noise_term", "noise term of the two-term stability budget"),
            Metric("noise_term_error", "its standard error"),
            Metric("gradient_square", "unbiased |G|^2 from products of independent batch gradients"),
            Metric("gradient_square_error", "its standard error"),
            Metric("gradient_noise", "mean squared norm of a batch gradient, noise included"),
            Metric(
                "flat_gain",
                "decrease of the loss that is left, in the quadratic picture, along directions that curve less than a "
                "hundredth of the steepest",
            ),
            Metric("flat_gain_error", "its standard error"),
            Metric("flat_curvature", "curvature of the directions where it is left"),
        ),
    ),
    Table(
        "slices",
        "estimate on one process with a deterministic closure, direction",
        (
            STEP,
            Metric("direction", "'top eigenvector' or 'gradient'; a unit vector v", "string"),
            Metric("offsets", "distances t from the weights after the update along v, ascending", "list"),
            Metric("losses", "loss of the current batch at weights + t v", "list"),
            Metric("slope", "g'v of the loss at t = 0"),
            Metric("curvature", "v'Hv of the loss at t = 0"),
            Metric("moved", "u'v of the update u just made, which along v began at t = -moved"),
        ),
    ),
    Table(
        "symmetry",
        "measured update, layer",
        (
            STEP,
            LAYER,
            Metric("units", "number of hidden units, or of a parameter's parts", "int64", unit="units"),
            Metric(
                "distinct_units",
                "classes of (incoming, bias, outgoing) weights equal up to sign within 1e-4 relative",
                "int64",
                unit="units",
            ),
            Metric(
                "alike_units",
                "units less than one percent from another in incoming and in outgoing weights: all but one of a class",
                "int64",
                unit="units",
            ),
            Metric("groups", "blocks of units that have inputs of their own (attention heads): never alike", "int64"),
        ),
        "layer",
    ),
    Table(
        "inputs",
        "measured update, input feature",
        (
            STEP,
            Metric("feature", "index of the input feature, or channel", "string"),
            _f32("mean", "mean of the feature over the inputs seen since the start, float32"),
            _f32("std", "standard deviation of the feature over the inputs seen since the start"),
            _f32("batch_rms", "root mean square of the feature over this update's inputs"),
            _f32("batch_std", "standard deviation of the feature over this update's inputs"),
            _f32(
                "condition",
                "condition number of the features' correlation matrix (the same in every row; up to 256 "
                "features, else NaN)",
            ),
            _f32("nonfinite", "share of this update's entries that are NaN or Inf"),
        ),
        "feature",
    ),
    Table(
        "terms",
        "update at which they were looked at, term of the loss; where several compare answers with targets, or one "
        "compares several numbers an example",
        (
            STEP,
            Metric(
                "term",
                f"the function that compares, numbered where it is called again, or `{OUTPUT}0` and so on",
                "string",
            ),
            Metric("loss", "what it returns, unweighted; of an output the mean squared error"),
            Metric("mean_answer_loss", "what it would return if each example were given the mean of all answers"),
            Metric(
                "pull",
                "length of its gradient, as it is weighted, in the weights that it shares with the other terms, over "
                "that of theirs together",
            ),
        ),
        "term",
    ),
    Table(
        "placements",
        "update at which they were looked at, set of placements of the targets; where pictures are compared with maps",
        (
            STEP,
            Metric("placements", "what it is, beside the targets as they are given", "string"),
            Metric("examples", "that were not looked at before", "int64", unit="examples"),
            Metric(
                "at_best",
                "mean share that the best placement of a target has of all R^2 by its input, less that of the targets "
                "of others",
            ),
            Metric("as_given", "the same of the placement that is given: the larger one, where targets lie right"),
            Metric("answer_as_given", "share of that in R^2 by the answer: 1 all of it, 0 no more than others"),
        ),
        "placements",
    ),
    Table(
        "examples",
        "kept batch, example and role, where watch was asked for examples",
        (
            STEP,
            Metric("example", "its place in the batch, from 0", "int64"),
            Metric("role", "'input', 'target' or 'answer'; answers in the targets' unit, as probabilities", "string"),
            Metric("kind", "'numbers', or 'classes': their indices, -1 where nothing is compared", "string"),
            Metric("size", "of what is kept: numbers; rows and columns; rows, columns and 3 colours", "list"),
            Metric("values", "its numbers, row after row, averaged over neighbours where there were more", "list"),
            Metric("certainty", "probability of a class, of one alone"),
        ),
    ),
    Table("logged", "call of monitor.log", (STEP,)),  # the numbers are further columns here and of `scalars`
    Table(
        "events",
        "event",
        (
            STEP,
            Metric("kind", "kind of event", "string"),
            Metric("message", "one sentence for a person", "string"),
            Metric("subject", "the tensor, layer or function the event is about, if any", "string"),
        ),
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
