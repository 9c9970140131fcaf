"""The first thing that is not finite, in causal order: input, operation, loss, gradient, weight.

Runs once in a run, when a loss or gradient has become NaN or infinite, so it may wait for the device: the closure is
repeated at the weights before the update, with a look at what every function received and returned.
"""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import forwards, functions, losspath, transfer
from diagnostics.monitor.sending import NAN
from diagnostics.monitor.update import Update

# Not finite outside a domain; everything else that makes an infinity of finite numbers has overflowed.
_DOMAINS = {
    "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "div", "divide", "true_divide", "truediv", "rdiv", "rtruediv",
    "reciprocal", "pow", "rpow", "acos", "arccos", "asin", "arcsin", "acosh", "atanh", "logit", "erfinv", "lgamma",
    "digamma", "norm", "vector_norm", "normalize", "std", "xlogy", "remainder", "fmod", "softmax", "log_softmax",
}  # fmt: skip
_LOGARITHMS = {"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "logit"}
_STEEP = {"sqrt": 0.0, "pow": 0.0, "acos": 1.0, "arccos": 1.0, "asin": 1.0, "arcsin": 1.0}  # infinite slope at ±this
LARGE = 1e15  # a loss beyond it, far from where a function may be steep: its gradient has overflowed
SQUARES = {"exp_avg_sq", "square_avg", "max_exp_avg_sq"}  # of torch.optim, which are divided by
_SUMS = {"linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d", "sum", "mean", "einsum"}
_MASKS = {"masked_fill", "full", "full_like", "fill", "where", "tril", "triu", "zeros", "new_full", "tensor"}


@dataclass(frozen=True)
class Origin:
    """`subject` in the run's vocabulary ("input", "op:log", "overflow:exp", "weight:0.bias"), and a sentence."""

    subject: str
    message: str


# It computes with logarithms throughout, so that nothing else is infinite.
IMPOSSIBLE = Origin("op:ctc_loss", "ctc_loss is infinite: a target needs more time steps than its input has")


class Trace(TorchFunctionMode):
    """Follows what is not finite through one forward. An infinity put there on purpose, as a mask, has no origin."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steep: tuple[str, float] | None = None  # the last function that was called where its slope is infinite
        self.hidden: Origin | None = None  # the first softmax of rows that hold nothing but -inf
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._origins = WeakTensorKeyDictionary()

    def origin(self, tensor: Tensor) -> Origin | None:
        return self._origins.get(tensor) if _bad(tensor) else None

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in functions.tensors((*args, *kwargs.values())) if t.is_floating_point()]
        bad = [t for t in inputs if _bad(t)]
        ranges = _range(inputs)  # before the call: it may overwrite them
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        self._note_steep(name, args, inputs)
        if self.hidden is None and _is_softmax(func) and bad and args and bad[0] is args[0]:
            self.hidden = _all_masked(bad[0], functions.dimension(functions.KINDS["softmax"], args, kwargs, bad[0]))
        for result in functions.tensors((out,)):
            if result.is_floating_point() and name not in ("get", "set") and _bad(result):
                origin = self._explain(name, result, bad, ranges)
                if origin is not None:
                    self._origins[result] = origin
        return out

    def _note_steep(self, name: str, args: tuple, inputs: list[Tensor]) -> None:
        edge = _STEEP.get(name)
        smooth = name == "pow" and not (len(args) > 1 and isinstance(args[1], int | float) and args[1] < 1)
        if edge is not None and inputs and not smooth and bool((inputs[0].detach().abs() == edge).any()):
            self.steep = (name, edge)

    def _explain(self, name: str, out: Tensor, bad: list[Tensor], ranges: tuple[float, float, bool]) -> Origin | None:
        for tensor in bad:
            if id(tensor) in self._names:
                parameter = self._names[id(tensor)]
                return Origin(f"weight:{parameter}", f"the weights {parameter} were not finite")
            if tensor in self._origins:
                return self._origins[tensor]
        if name in _MASKS and not bool(out.isnan().any()):
            return None
        if any(bool(t.isnan().any()) for t in bad) or (bad and not self._masks(bad)):
            return Origin("input", f"the batch holds {_share(bad[0])} that are NaN or infinite")
        if bad and not bool(out.isnan().any()):
            return None  # a mask passed on
        return _made(name, out, ranges)

    def _masks(self, bad: list[Tensor]) -> bool:
        """Negative infinities only: attention's way to leave something out."""
        return all(bool((t[~t.isfinite()] == -torch.inf).all()) for t in bad)


class _Seeing(TorchFunctionMode):
    """Rows of a softmax that are masked throughout see everything."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if _is_softmax(func) and args and isinstance(args[0], Tensor):
            rows = _masked_rows(args[0], functions.dimension(functions.KINDS["softmax"], args, kwargs, args[0]))
            args = (args[0].masked_fill(rows, 0.0), *args[1:])
        return func(*args, **kwargs)


def _is_mended(closure: Callable[[], Any], tensors: dict[str, Tensor]) -> bool:
    """Whether loss and gradient are finite where these rows see something."""
    trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
    with _Seeing():
        loss = closure()
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return not _bad(loss) and not any(each is not None and _bad(each) for each in gradients)


def _is_softmax(func: Callable) -> bool:
    return getattr(func, "__name__", "") in ("softmax", "log_softmax")


def _masked_rows(x: Tensor, along: int) -> Tensor:
    return (x.detach() == -torch.inf).all(along, keepdim=True)


def _all_masked(x: Tensor, along: int) -> Origin | None:
    rows = _masked_rows(x, along)
    if not rows.any():
        return None
    said = f"a softmax was given rows that are masked throughout, {int(rows.sum())} of {rows.numel()}: 0/0"
    return Origin("masked:softmax", f"{said}, also in the gradient of a loss that leaves them out")


def _made(name: str, out: Tensor, ranges: tuple[float, float, bool]) -> Origin:
    low, high, zero = ranges
    nan = bool(out.isnan().any())
    if name == "ctc_loss" and not nan:
        return IMPOSSIBLE
    outside = name in _DOMAINS and (nan or zero or (name in _LOGARITHMS and low <= 0))
    if outside or (nan and name not in _SUMS):
        received = "0" if zero else f"{low:g}" if name in _LOGARITHMS else f"numbers from {low:g} to {high:g}"
        return Origin(f"op:{name}", f"{name} received {received} and returned {'NaN' if nan else 'infinity'}")
    kind = str(out.dtype).removeprefix("torch.")
    return Origin(f"overflow:{name}", f"{name} received numbers from {low:g} to {high:g} and overflowed {kind}")


def seen(update: Update, loss: Any) -> bool:
    """Read at once only where that does not wait for a device. A loss that is missing is not bad."""
    readable = loss is not NAN if not isinstance(loss, Tensor) else transfer.on_host(loss.device)
    return bool(update.bad_gradients) or (readable and not math.isfinite(float(loss)))


def origin(
    update: Update,
    loss: Any,
    closure: Callable[[], Any] | None,
    model: nn.Module,
    optimizer: Optimizer,
    tensors: dict[str, Tensor],
    states: forwards.RandomState | None,
) -> Origin:
    """Of the first number that is not finite in this update."""
    found = _no_epsilon(update.rescued or (), tensors, optimizer)
    if found is not None:
        return found
    if closure is not None:
        weights = update.rescued or [tensor.data for tensor in tensors.values()]
        found = search(closure, model, weights, tensors, states)
    return by_place(loss, update.bad_gradients) if found is None else found


def search(
    closure: Callable[[], Any],
    model: nn.Module,
    weights: Sequence[Tensor],
    tensors: dict[str, Tensor],
    states: forwards.RandomState | None,
) -> Origin | None:
    """Where the closure's loss or its gradient stops being finite, at `weights`; `None` if it does not."""
    trace, parameters = Trace(model), list(tensors.values())
    with forwards.ours(model, closure), forwards.standing_in(weights, parameters), torch.enable_grad():
        if states is not None:
            forwards.set_random_state(model, states)
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            with trace:
                loss = closure()
            if not isinstance(loss, Tensor):
                return None
            found = trace.origin(loss)
            found = found if found is not None or _bad(loss) else _backward(loss, tensors, trace)
        return trace.hidden if trace.hidden is not None and _is_mended(closure, tensors) else found


def by_place(loss: Any, bad_gradients: Sequence[str]) -> Origin:
    """What can be said without a closure: the loss, or the gradient nearest to it, and what may have made it so."""
    value = torch.as_tensor(loss).detach()
    if not torch.isfinite(value).all():
        if isinstance(loss, Tensor) and not bool(value.isnan().any()) and losspath.met(loss, {"ctcloss"}):
            return IMPOSSIBLE
        return Origin("loss", f"the loss is {float(value.mean())}")
    name, function = bad_gradients[-1], losspath.met(loss, _STEEP) if isinstance(loss, Tensor) else None
    if bool((value.abs() > LARGE).any()):
        return Origin(
            f"overflow:gradient of {name}", f"the gradient of {name} overflowed, the loss is {float(value.mean()):.3g}"
        )
    message = f"the gradient of {name} is not finite though the loss is"
    if function is None:
        return Origin(f"gradient:{name}", message)
    edge = f"{_STEEP[function]:g}" + (" and -1" if _STEEP[function] else "")
    return Origin(f"op:{function}", f"{message}; the loss goes through {function}, whose slope is infinite at {edge}")


def _no_epsilon(before: Sequence[Tensor], tensors: dict[str, Tensor], optimizer: Optimizer) -> Origin | None:
    """Where weights were not finite before this update, and what was added to the root that the last one divided by is
    nothing in their precision. Steps of such optimizers are no longer than some rates, and so overflow by nothing
    else."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for weights, (name, tensor) in zip(before, tensors.items(), strict=False):
        group = groups.get(id(tensor), {})
        eps, rooted = group.get("eps"), SQUARES & set(optimizer.state.get(tensor, {}))
        if not (rooted and _is_lost(eps, tensor) and _bad(weights)) or group.get("fused") or not group["lr"] <= 1:
            continue
        kind = str(tensor.dtype).removeprefix("torch.")
        message = (
            f"the weights {name} were not finite, since the optimizer divided by 0: its eps={eps:g} is 0 in {kind}, as "
            "are the squares of small gradients"
        )
        return Origin("epsilon:" + kind, message)
    return None


def _is_lost(eps: Any, tensor: Tensor) -> bool:
    if not isinstance(eps, float) or eps <= 0 or not tensor.is_floating_point():
        return False
    return float(torch.tensor(eps, dtype=tensor.dtype)) == 0


def _backward(loss: Tensor, tensors: dict[str, Tensor], trace: Trace) -> Origin | None:
    """The loss is finite: is it its gradient? Anomaly mode names the function whose gradient turned to NaN."""
    trained = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anomaly mode prints the traceback that is read below
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    except RuntimeError as error:
        named = re.search(r"Function '(\w+?)Backward\d*'", str(error))
        if named is None:
            raise
        name, edge = trace.steep or (named[1].lower(), None)
        received = "" if edge is None else f", which received {edge:g},"
        return Origin(f"op:{name}", f"the gradient of {name}{received} is not finite though the loss is")
    for name, gradient in reversed(list(zip(trained, gradients, strict=True))):
        if gradient is not None and _bad(gradient):
            return Origin(
                f"overflow:gradient of {name}", f"the gradient of {name} overflowed though the loss is finite"
            )
    return None


def _bad(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not bool(torch.isfinite(tensor.detach()).all())


def _range(tensors: Sequence[Tensor]) -> tuple[float, float, bool]:
    """Smallest and largest finite number received, and whether one was exactly zero."""
    finite = [t.detach()[torch.isfinite(t.detach())] for t in tensors]
    found = [t for t in finite if t.numel()]
    if not found:
        return float("nan"), float("nan"), False
    low, high = min(float(t.min()) for t in found), max(float(t.max()) for t in found)
    return low, high, any(bool((t == 0).any()) for t in found)


def _share(tensor: Tensor) -> str:
    count = int((~torch.isfinite(tensor)).sum())
    return f"{count} of {tensor.numel()} numbers"
