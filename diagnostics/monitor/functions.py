"""Which torch function is which activation, and which leaves a tensor's units in their places.

The tables are keyed by the function objects that a `TorchFunctionMode` receives: `F.relu(x)`, `torch.relu(x)` and
`x.relu_()` are three of them.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics.stats import KINDS, Kind


def _functions(*names: str) -> set[Callable]:
    """Every function of these names, in torch, torch.nn.functional and as a method; in place too."""
    homes = (torch, F, Tensor)
    spelled = [form for name in names for form in (name, name + "_")]
    return {getattr(home, name) for home in homes for name in spelled if hasattr(home, name)}


_SIMPLE = {
    "relu": "relu",
    "relu6": "relu6",
    "prelu": "leaky_relu",
    "rrelu": "leaky_relu",
    "selu": "elu",
    "celu": "elu",
    "elu": "elu",
    "softplus": "softplus",
    "gelu": "gelu",
    "silu": "silu",
    "mish": "mish",
    "hardswish": "hardswish",
    "sigmoid": "sigmoid",
    "special_expit": "sigmoid",
    "tanh": "tanh",
    "softsign": "softsign",
    "hardsigmoid": "hardsigmoid",
    "sign": "threshold",
    "sgn": "threshold",
    "heaviside": "threshold",
    "round": "threshold",
    "floor": "threshold",
    "ceil": "threshold",
    "trunc": "threshold",
    "softmax": "softmax",
}
_KIND_OF: dict[Callable, Kind] = {f: KINDS[kind] for name, kind in _SIMPLE.items() for f in _functions(name)}
_KIND_OF |= {f: KINDS["sigmoid"] for f in (torch.special.expit,)}
_KIND_OF |= {f: KINDS["softmax"] for f in (torch.special.softmax,)}
_CLAMP = _functions("clamp", "clip", "hardtanh")
_CLAMP_MIN = _functions("clamp_min")
CLAMPS = (_CLAMP | _CLAMP_MIN) - _functions("hardtanh")
_THRESHOLD = _functions("threshold")
_LEAKY = _functions("leaky_relu")

LOGITS = {F.cross_entropy} | _functions("log_softmax")  # expect numbers of any size, and make probabilities of them
DIVERGENCE = {F.kl_div}  # expects logarithms of probabilities
COUNTS = {F.poisson_nll_loss}  # an output, or its exponential, is the rate of what is counted
COMPARING = {F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss}  # an output with a target of the same unit
ROBUST = {F.l1_loss, F.smooth_l1_loss, F.huber_loss}  # of these, whose gradient does not tell the targets
# Scores with classes or labels. What numbers are compared with, where they are no output, such as the value of one
# action, is often made by the network itself, and varies no more than it is known.
LABELLED = {F.cross_entropy, F.nll_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits}
WITH_TARGETS = LABELLED | COMPARING
# Whose labels are 1 and -1, and where among the arguments they are.
SIGNED: dict[Callable, int] = {
    F.cosine_embedding_loss: 2,
    F.hinge_embedding_loss: 1,
    F.soft_margin_loss: 1,
}
LINEAR = {F.linear}
CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
PER_CHANNEL = _functions("batch_norm", "instance_norm", "group_norm")
_LAST_NORMS = _functions("layer_norm", "rms_norm")
LAYER_NORM, GROUP_NORM, BATCH_NORM = (_functions(name) for name in ("layer_norm", "group_norm", "batch_norm"))
NORMS = PER_CHANNEL | _LAST_NORMS
ATTENTION = {F.scaled_dot_product_attention}
ELMAN: dict[Callable, Kind] = {torch.rnn_tanh: KINDS["tanh"], torch.rnn_relu: KINDS["relu"]}
RECURRENT = {torch.lstm, torch.gru, *ELMAN}
MULTI_HEAD = {F.multi_head_attention_forward}
SEQUENCES = RECURRENT | MULTI_HEAD
FLATTEN = _functions("flatten", "view", "reshape")
MATMUL = _functions("matmul") | {Tensor.__matmul__}
INNER = MATMUL | _functions("mm", "bmm")
COSINE = _functions("cosine_similarity")
ADDING = _functions("add") | {Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
GATING = _functions("mul", "multiply") | {Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__}
DIVIDING = _functions("div", "divide", "true_divide") | {Tensor.__truediv__, Tensor.__itruediv__}
BEST = _functions("max", "amax", "argmax")
PICKING = _functions("gather", "take_along_dim")
RUNNING = _functions("cumsum", "logcumsumexp", "cumprod", "cummax", "cummin")  # each number with all before it
SUBTRACTING = _functions("sub", "subtract") | {Tensor.__sub__, Tensor.__rsub__, Tensor.__isub__}
SQUARE, ABSOLUTE = _functions("square"), _functions("abs", "absolute") | {Tensor.__abs__}
POWER = _functions("pow") | {Tensor.__pow__, Tensor.__ipow__}
EXPONENTIAL = _functions("exp")
WAVES = _functions("sin", "cos")
REDUCING = _functions("mean", "sum")
DISTANCE = _functions("pairwise_distance")  # of two matrices, row by row
NEGATING = _functions("neg", "negative") | {Tensor.__neg__}
GLU = _functions("glu")
PERMUTING = _functions("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t") | {
    getattr(Tensor.T, "__get__"),  # noqa: B009
    getattr(Tensor.mT, "__get__"),  # noqa: B009
}
LAYOUT = FLATTEN | PERMUTING | _functions("unflatten", "chunk", "split", "tensor_split", "unbind", "narrow", "select")
LAYOUT |= _functions("squeeze", "unsqueeze", "expand") | {Tensor.__getitem__}
_POOLS = {
    f
    for size in "123"
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    for f in _functions(f"{kind}{size}d", f"{kind}{size}d_with_indices")
}
SELECTING = _functions("index_select")
JOINING = _functions("cat", "concat", "concatenate", "hstack")
FILLING = _functions("masked_fill", "fill_diagonal")
DROPOUTS = _functions("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d")
_CASTS = _functions("float", "half", "bfloat16", "double", "to", "contiguous", "type_as", "clone", "detach", "identity")
_SCALINGS = _functions("abs", "square", "exp", "neg", "log_softmax")
ENTRYWISE = (set(_KIND_OF) | _CLAMP | _CLAMP_MIN | _THRESHOLD | _LEAKY | DROPOUTS | _CASTS | _SCALINGS) - _functions(
    "softmax", "log_softmax"
)
KEEPS_UNITS = ENTRYWISE | NORMS | _POOLS


def activation(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Kind | None:
    """The kind of activation that this call is, or `None`."""
    kind = _KIND_OF.get(function)
    if kind is not None:
        return kind
    if function in _CLAMP:
        return _clamp(function, args, kwargs)
    if function in _CLAMP_MIN:
        return _bounded(argument(args, kwargs, 1, "min"), None)
    if function in _THRESHOLD:
        return KINDS["threshold relu"] if argument(args, kwargs, 1, "threshold") == 0 else None
    if function in _LEAKY:
        return _leaky(argument(args, kwargs, 1, "negative_slope", 0.01))
    return None


def _clamp(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Kind | None:
    if function.__name__.startswith("hardtanh"):
        low, high = argument(args, kwargs, 1, "min_val", -1.0), argument(args, kwargs, 2, "max_val", 1.0)
        return KINDS["relu6"] if (low, high) == (0.0, 6.0) else _bounded(low, high)
    return _bounded(argument(args, kwargs, 1, "min"), argument(args, kwargs, 2, "max"))


def _bounded(low: Any, high: Any) -> Kind | None:
    """A clamp from below at zero is a ReLU, between two numbers a hard tanh; with tensors it is no activation."""
    if high is None:
        return KINDS["relu"] if isinstance(low, int | float) and low == 0 else None
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return None
    return Kind("hardtanh", lambda x: ((x > low) & (x < high)).to(x.dtype), saturates=True)


def _leaky(slope: Any) -> Kind:
    return Kind("leaky_relu", lambda x: torch.where(x > 0, 1.0, float(slope)))


def argument(args: tuple, kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def in_place(function: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the call may overwrite its input, so that statistics of the input must be taken from a copy."""
    name = getattr(function, "__name__", "")
    return name.endswith("_") or bool(kwargs.get("inplace")) or any(argument is True for argument in args[1:])


def tensors(values: tuple) -> Iterator[Tensor]:
    """Among arguments, one level of lists and tuples deep."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


def are_tensors(values: tuple) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def holds_tokens(x: Tensor) -> bool:
    """Whether these may be the numbers of words, a text a row."""
    return x.dim() == 2 and not x.is_floating_point() and not x.is_complex()


def normalized(function: Callable, args: tuple, kwargs: dict[str, Any]) -> int | None:
    """How many numbers share a mean and a deviation, in a layer or group norm, or a batch norm in training mode."""
    if function in BATCH_NORM:
        x, training = args[0], [*args, *kwargs.values()][5:6]
        return x.numel() // x.shape[1] if training == [True] and x.numel() else None
    if function not in LAYER_NORM | GROUP_NORM:
        return None
    x, shape = args[0], args[1] if len(args) > 1 else next(iter(kwargs.values()))
    return prod(shape) if function in LAYER_NORM else x.numel() // (len(x) * shape) if x.numel() else None


def spelled(function: Callable) -> str:
    return getattr(function, "__name__", "activation").rstrip("_")


def dimension(kind: Kind, args: tuple, kwargs: dict[str, Any], x: Tensor) -> int:
    """The dimension a softmax normalizes; `F.softmax` without one takes the first for 0, 1 and 3 dimensions."""
    if kind.name != "softmax":
        return -1
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return dim if isinstance(dim, int) else (0 if x.dim() in (0, 1, 3) else 1)
