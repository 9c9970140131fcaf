"""From the loss back to the last layer, along the graph that autograd built: which functions lie between.

The graph's nodes name the functions ("SoftmaxBackward0"); they are walked, never called, and nothing is kept.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from torch import Tensor

SHAPES = {
    "view", "unsafeview", "reshape", "squeeze", "unsqueeze", "t", "transpose", "permute", "expand", "select", "slice",
    "clone", "tocopy", "alias", "gather", "index", "cat", "stack", "ddpsink", "asstrided", "detach", "contiguous",
}  # fmt: skip
_NAMES = {
    "nllloss": "nll_loss",
    "nllloss2d": "nll_loss",
    "mseloss": "mse_loss",
    "smoothl1loss": "smooth_l1_loss",
    "huberloss": "huber_loss",
    "logsoftmax": "log_softmax",
    "binarycrossentropy": "binary_cross_entropy",
    "binarycrossentropywithlogits": "binary_cross_entropy_with_logits",
    "kldiv": "kl_div",
    "softmarginloss": "soft_margin_loss",
}
_OF_TWO = {"mul": "product", "sub": "difference"}
LAYERS = {"addmm", "mm", "linear", "bmm", "baddbmm", "convolution", "addmv", "mv", "addbmm", "embedding"}
_PLAIN = {
    "mean", "sum", "div", "add", "mseloss", "smoothl1loss", "huberloss", "pow", "abs", "expand", "sub",
    "squeeze", "unsqueeze", "view", "t", "transpose", "sqrt",
}  # fmt: skip
LONGEST = 200  # nodes walked: the part of interest is at the end of the model
FAR = 10 * LONGEST


def describe(loss: Tensor) -> str:
    """Functions between the last layer with parameters and the loss, in order: "softmax -> cross_entropy".

    A `mul` of two different results, as of a gate and what it lets through, is a "product"; a `sub` of two, as of a
    rate and a count times its logarithm, a "difference" - of outputs, not of an output and its target.
    """
    names: list[str] = []
    for node in _chain(loss.grad_fn):
        name = function_of(node)
        if name in LAYERS or holds_parameter(node):
            break
        if name not in SHAPES:
            known = _NAMES | _OF_TWO if len(set(inputs_of(node))) > 1 else _NAMES
            names.append(known.get(name, name))
    names.reverse()
    path = " -> ".join(names).replace("log_softmax -> nll_loss", "cross_entropy")
    return re.sub(r"\bsub -> abs -> (mean|sum)\b", "l1_loss", path)  # which autograd has no node for


def last_function(output: Tensor) -> str:
    """Name of the function that an output comes from, whatever shape it was given since; "" if there is none."""
    return last_before(output.grad_fn)


def last_before(node: Any) -> str:
    """The same of what a node hands on: its own name, or that of one behind it."""
    while node is not None and function_of(node) in SHAPES:
        below = inputs_of(node)
        node = below[0] if len(below) == 1 else None
    return "" if node is None else function_of(node)


def softmax(loss: Tensor) -> list[int]:
    """The dimension, counted from the first, along which the first softmax or log-softmax behind the last layer is
    taken, and the shape of what it is taken of; nothing where there is none, or its axes change places behind it."""
    found = list[int]()
    for node in _chain(loss.grad_fn):
        name, shape = function_of(node), _output_shape(node)
        if name in ("softmax", "logsoftmax") and shape:
            found = [_signed(node._saved_dim) % len(shape), *shape]
        if name in {"t", "transpose", "permute"} | LAYERS or holds_parameter(node):
            break
    return found


def _signed(dimension: int) -> int:
    """Autograd gives -1 as 2^64 - 1."""
    return dimension - 2**64 if dimension >= 2**63 else dimension


def all_pairs(loss: Tensor) -> int:
    """N, if the loss is a mean over all pairs of N outputs and N fixed targets, as of a column less a row; or 0."""
    for _, before, after in _repeated(loss):
        count = max(before, default=0)
        if count > 1 and before in ((count,), (count, 1), (1, count)) and after == (count, count):
            return count
    return 0


def one_answer(loss: Tensor) -> int:
    """N, if one row that depends on weights, and is none of them, is compared with N fixed targets; or 0."""
    for node, before, after in _repeated(loss):
        if len(before) == len(after) > 0 and before[0] == 1 < after[0] and before[1:] == after[1:]:
            return 0 if is_parameter(node) else after[0]
    return 0


def one_sum(loss: Tensor) -> int:
    """N, if one number that adds up N rows is compared with N fixed targets; or 0. A mean of them may be meant to be
    told from each, as that of a relativistic discriminator."""
    for node, before, after in _repeated(loss):
        if not before and len(after) == 1 and function_of(node) == "sum":
            (summed,) = map(_output_shape, inputs_of(node))
            return after[0] if summed[:1] == after else 0
    return 0


def _repeated(loss: Tensor) -> Iterator[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
    """Nodes of what may be repeated to fit fixed targets, with its shape before and after.

    Only into a plain difference, squared or absolute: distances of samples go on, into an exponential or another
    difference.
    """
    for node in _chain(loss.grad_fn):
        name, below = function_of(node), inputs_of(node)
        if name in ("expand", "sub") and len(below) == 1:
            yield below[0], _output_shape(below[0]), _output_shape(node)
        if name not in _PLAIN or (name == "sub" and len(below) > 1):
            return


def all_columns(loss: Tensor) -> int:
    """N, if the loss takes N columns from each of N rows that have fewer, as `q[:, a]` does where `gather` was meant;
    or 0. Only into a plain difference or product: scores may go on into a softmax over the batch's own."""
    for node in _chain(loss.grad_fn):
        name, below = function_of(node), inputs_of(node)
        if name in ("index", "indexselect") and len(below) == 1:
            before, after = _output_shape(below[0]), _output_shape(node)
            taken = len(before) == 2 and before[1] < before[0] and after == (before[0], before[0])
            return before[0] if taken else 0
        if name not in _PLAIN | {"mul", "neg"}:
            return 0
    return 0


def products(loss: Tensor) -> Iterator[tuple[Any, int]]:
    """Nodes of terms of the loss that are the mean of N numbers times something that makes N x N of them, and N. If
    that is N constants in a row it is the product of two means: each advantage, say, weighs all others'
    log-probabilities."""
    for node in _averaged(loss.grad_fn):
        if function_of(node) != "mul" or len(inputs_of(node)) != 1:
            continue
        after, (before,) = _output_shape(node), map(_output_shape, inputs_of(node))
        count = max(after, default=0)
        if count > 1 and after == (count, count) and before in ((count,), (count, 1), (1, count)):
            yield node, count


def makes_pairs(loss: Tensor) -> bool:
    """Whether a column of N numbers becomes N x N of them on the way to the loss, whatever it meets."""
    for node in walk(loss.grad_fn, set(), FAR, is_parameter):
        count = max(_output_shape(node), default=0)
        square = count > 1 and _output_shape(node) == (count, count)
        if square and any(_output_shape(each) == (count, 1) for each in inputs_of(node)):
            return True
    return False


def _averaged(node: Any) -> Iterator[Any]:
    """What the means and sums are taken of that are added up to the loss; of the smaller or larger of two, as of a
    ratio clipped or not, both."""
    waiting = [(node, False)]
    for _ in range(LONGEST):
        if not waiting:
            return
        node, inside = waiting.pop()
        name, below = ("", []) if node is None else (function_of(node), inputs_of(node))
        if name in ("neg", "minimum", "maximum") if inside else name in ("add", "sub", "mul", "div", "neg"):
            waiting += [(each, inside) for each in below]
        elif not inside and name in ("mean", "sum"):
            waiting += [(each, True) for each in below]
        elif inside and node is not None:
            yield node


def _output_shape(node: Any) -> tuple[int, ...]:
    """Of what the function returned: the gradient it is given has that shape too."""
    shapes = [tuple(each.shape) for each in getattr(node, "_input_metadata", ())]
    return shapes[0] if len(shapes) == 1 else ()


def met(loss: Tensor, functions: Collection[str]) -> str | None:
    """One of these functions that lies between the loss and the parameters; of powers, only roots."""
    for node in walk(loss.grad_fn, set(), FAR, is_parameter):
        name = function_of(node)
        # of a power that is a tensor nothing is kept
        if name in functions and (name != "pow" or (node.name() == "PowBackward0" and 0 < node._saved_exponent < 1)):
            return name
    return None


def history(tensor: Any) -> Any:
    """The node that made a tensor; `None` of what has none, or, as a view of what was changed in place, none that can
    be asked for."""
    with contextlib.suppress(RuntimeError):
        return tensor.grad_fn if isinstance(tensor, Tensor) else None


def parameters(tensors: Iterable[Any]) -> Iterator[Tensor]:
    """Those that need a gradient and that tensors among these depend on."""
    seen = set[Any]()
    for each in tensors:
        nodes = walk(history(each), seen, FAR)
        yield from (node.variable for node in nodes if node.name().endswith("AccumulateGrad"))


def _chain(node: Any) -> Iterator[Any]:
    """The first differentiable input of each node: the way the model's output takes through the loss."""
    for _ in range(LONGEST):
        if node is None:
            return
        yield node
        following = inputs_of(node)
        node = next((n for n in following if not is_parameter(n)), None)


def walk(start: Any, seen: set[Any], most: int, skipped: Callable[[Any], bool] = lambda node: False) -> Iterator[Any]:
    """Nodes that can be reached and were not `seen`, each once, until so many were. What was seen is held: a node that
    is let go may leave its identity to another."""
    waiting = [] if start is None else [start]
    while waiting and len(seen) < most:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following in inputs_of(node) if not skipped(following)]


def inputs_of(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions if following is not None]


def is_parameter(node: Any) -> bool:
    """A parameter itself, or a transposed view of one, as `nn.Linear` uses its weight."""
    if node.name().endswith("AccumulateGrad"):
        return True
    below = inputs_of(node)
    return (
        function_of(node) in ("t", "transpose", "permute") and bool(below) and all(is_parameter(each) for each in below)
    )


def holds_parameter(node: Any) -> bool:
    """A parameter goes into this function directly, or transposed as `F.linear` does it."""
    return any(is_parameter(each) for each in inputs_of(node))


def function_of(node: Any) -> str:
    """The name of a function, by its node: "SoftmaxBackward0" is "softmax"."""
    return re.sub(r"(Backward\d*|Backward)$", "", node.name().rpartition("::")[2]).lower().lstrip("_")


def is_layer(node: Any) -> bool:
    return function_of(node) in LAYERS or is_parameter(node)


def is_product(node: Any) -> bool:
    """Of two different results."""
    return function_of(node) == "mul" and len(set(inputs_of(node))) == 2


def constant(node: Any) -> Tensor | None:
    """What a product multiplies a single result with."""
    if len(inputs_of(node)) != 1:
        return None
    at = next(place for place, (below, _) in enumerate(node.next_functions) if below is not None)
    return getattr(node, "_saved_self" if at else "_saved_other", None)
