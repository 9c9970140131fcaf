"""Columns that met rows: what PyTorch broadcasts to all pairs without a word, as outputs (N, 1) and labels (N,)."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions

FEW = 2  # different numbers in a row of labels; samples, which may be meant to meet all others, have more
LEAST = 8  # numbers in a row, so that it is not of so few by chance
_BY_ENTRY = {
    "add", "radd", "sub", "rsub", "subtract", "mul", "rmul", "multiply", "div", "truediv", "rtruediv", "divide", "pow",
    "rpow", "exp", "log", "log1p", "log2", "sigmoid", "logsigmoid", "softplus", "relu", "abs", "sqrt", "square", "neg",
    "negative", "clamp", "clip", "clamp_min", "where", "maximum", "minimum", "sin", "cos", "tanh",
}  # fmt: skip


class Broadcasts(TorchFunctionMode):
    """The shapes of the tensors that each function is given, and what it makes of them. `labelled`: N, where each of a
    column of N outputs met a row of N labels, and the mean or sum over all pairs was taken."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[list[Any], Any]] = []  # shapes, and the result's node
        self._pairs = WeakTensorKeyDictionary()  # squares that came of such a meeting alone, number by number
        self.labelled = 0

    def square(self, count: int) -> bool:
        """Whether a square of so many numbers met a row of as many."""
        return any((count, count) in shapes and _has_row(shapes, count) for shapes, _ in self._calls)

    def column(self, node: Any, count: int) -> bool:
        """Whether this node is made of a column of so many numbers and a row of as many."""
        return any(made is node and (count, 1) in shapes and _has_row(shapes, count) for shapes, made in self._calls)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)]
        if isinstance(out, Tensor):
            if len(given) > 1:
                self._calls.append(([tuple(each.shape) for each in given], out.grad_fn))
            self._follow(functions.spelled(func).strip("_"), given, out)
        return out

    def _follow(self, name: str, given: list[Tensor], out: Tensor) -> None:
        if name in ("mean", "sum") and out.dim() == 0 and given and given[0] in self._pairs and out.requires_grad:
            self.labelled = len(given[0])
        elif name in _BY_ENTRY and out.dim() == 2 and len(out) == out.shape[1] >= LEAST:
            squares = [each for each in given if each.shape == out.shape]
            met = not squares and all(_is_column_or_label(each, len(out)) for each in given) and len(given) > 1
            if met or (squares and all(each in self._pairs for each in squares)):
                self._pairs[out] = True


def _is_column_or_label(x: Tensor, count: int) -> bool:
    if tuple(x.shape) == (count, 1):
        return x.requires_grad
    return x.dim() == 0 or (_has_row([tuple(x.shape)], count) and not x.requires_grad and len(x.unique()) <= FEW)


def _has_row(shapes: list[Any], count: int) -> bool:
    return (count,) in shapes or (1, count) in shapes
