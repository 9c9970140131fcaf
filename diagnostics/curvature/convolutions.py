"""Convolution and batch normalization with the double backward that a product needs and no more.

For a weight's part PyTorch's own convolves one batch with the other, by a filter of the size of the image, and group by
group where there are groups; that of batch normalization reads its tensors some thirty times, and cannot be
differentiated once more (torch 2.13 gives a wrong answer). Here the kernels of the first backward serve, and a product
of a ResNet-18 takes a quarter less time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from diagnostics.curvature.hoisted import once, plain

aten = torch.ops.aten


class _Convolution(Function):
    """y = x * w, without a bias; `how`: stride, padding, dilation, transposed, output padding, groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = how
        return aten.convolution(x, w, None, *how)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if once():
            return *_ConvolutionBackward.apply(dy, x, w, wanted, ctx.how), None  # type: ignore
        return *_pull(dy, x, w, ctx.how, wanted), None


class _ConvolutionBackward(Function):
    """dx, linear in dy and w, and dw, linear in dy and x; None where it is not wanted."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool], how: tuple[Any, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(dy, x, w)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return _pull(dy, x, w, how, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, w = ctx.saved_tensors
        of_y = None if vx is None else aten.convolution(vx, w, None, *ctx.how)
        if vw is not None:
            other = aten.convolution(x, vw, None, *ctx.how)
            of_y = other if of_y is None else of_y.add_(other)
        # dx has w in it, and dw has x: each is the other's part with vw or vx in that place.
        ends = x if vx is None else vx, w if vw is None else vw
        of_x, of_w = _pull(dy, *ends, ctx.how, (vw is not None, vx is not None))
        return of_y, of_x, of_w, None, None


class _BatchNorm(Function):
    """z = w y + b and y = (x - mean) r, r = 1 / sqrt(var + eps) over all axes but the second; also y and r."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, _, r = torch.native_batch_norm(x, None, None, mean, variance, True, momentum, eps)
        ctx.save_for_backward(y, r, w)
        ctx.set_materialize_grads(False)
        return torch.addcmul(_wide(b, y), y, _wide(w, y)), y, r

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, dy: Tensor | None, dr: Tensor | None) -> tuple[Tensor | None, ...]:
        y, r, w = ctx.saved_tensors
        dx = dw = db = None
        if dz is not None:
            pull: Any = _BatchNormBackward.apply if once() else _normalize_pull
            dx, dw, db = pull(dz, y, r, w)
        if dy is not None:
            other = _normalize_pull(dy, y, r)[0]
            dx = other if dx is None else dx.add_(other)
        if dr is not None:
            along = y * _wide(dr * r * r * (-r.numel() / y.numel()), y)
            dx = along if dx is None else dx.add_(along)
        return dx, dw, db, None, None, None, None


class _BatchNormBackward(Function):
    """dx = w r (dz - mean(dz) - y mean(dz y)), dw = sum(dz y) and db = sum(dz)."""

    @staticmethod
    def forward(ctx: Any, dz: Tensor, y: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx, dw, db = _normalize_pull(dz, y, r, w)
        ctx.save_for_backward(dz, y.detach(), r.detach(), w, dw, db)
        return dx, dw, db

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor, vw: Tensor, vb: Tensor) -> tuple[Tensor, ...]:
        dz, y, r, w, dw, db = ctx.saved_tensors
        share = r.numel() / y.numel()
        pulled, along, total = _normalize_pull(vx, y, r, w)
        inner = _sum(vx * dz) - share * (db * total + dw * along)  # of vx and what w r multiplies in dx
        of_z = pulled.addcmul_(y, _wide(vw, y)).add_(_wide(vb, y))
        of_y = (vx * _wide(-share * r * w * dw, y)).addcmul_(dz, _wide(vw - share * r * w * along, y))
        return of_z, of_y, w * inner, r * inner


def _pull(
    dy: Tensor, x: Tensor, w: Tensor, how: tuple[Any, ...], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    if not any(wanted):
        return None, None
    dx, dw, _ = aten.convolution_backward(dy, x, w, None, *how, (*wanted, False))
    return dx, dw


def _normalize_pull(dz: Tensor, y: Tensor, r: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dw and db; by formula where the closure goes on to differentiate."""
    scale = r if w is None else r * w
    if torch.is_grad_enabled():
        dw, db, share = _sum(dz * y), _sum(dz), r.numel() / y.numel()
        return _wide(scale, y) * (dz - share * (_wide(db, y) + y * _wide(dw, y))), dw, db
    zero, one = torch.zeros_like(r), torch.ones_like(r)  # the mean and 1 / std of y
    return aten.native_batch_norm_backward(dz, y, scale, None, None, zero, one, True, 0.0, (True, True, True))


def _sum(x: Tensor) -> Tensor:
    """(channels,)"""
    return x.sum([i for i in range(x.dim()) if i != 1])


def _wide(channels: Tensor, like: Tensor) -> Tensor:
    """To be multiplied with a tensor whose second axis are the channels."""
    return channels.view(-1, *[1] * (like.dim() - 2))


def _convolution(usual: Any, axes: int) -> Any:
    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        batched = isinstance(input, Tensor) and input.dim() == axes + 2
        others = [] if bias is None else [bias]
        if not batched or isinstance(padding, str) or not plain(input, weight, *others):
            return usual(input, weight, bias, stride, padding, dilation, groups)
        stride, padding, dilation = ([n] * axes if isinstance(n, int) else n for n in (stride, padding, dilation))
        y = _Convolution.apply(input, weight, (stride, padding, dilation, False, [0] * axes, groups))
        return y if bias is None else y + _wide(bias, y)  # type: ignore

    return convolution


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    several = training and input.numel() > input.shape[1]  # of one value a channel F.batch_norm says what is wrong
    if not several or weight is None or bias is None or not plain(input, weight, bias):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)[0]  # type: ignore


FORMULAS = {
    **{usual: _convolution(usual, axes) for axes, usual in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)},
    F.batch_norm: batch_norm,
}
