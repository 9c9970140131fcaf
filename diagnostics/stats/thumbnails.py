"""One example made small enough to be kept and drawn: a picture, a few series, a row of features or of tokens."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

SIDE = 48  # of a picture: enough to know what it is of
LONG = 256  # of a series
NARROW = 8  # this many series are drawn beside each other, more are a picture
COLOURS = (1, 3, 4)  # channels of one


def thumbnail(x: Shaped[Tensor, "*any"]) -> Float[Tensor, "*small"]:
    """`x` as (numbers,), (rows, columns) or (rows, columns, 3): averaged over neighbours where it holds more than is
    drawn; whole numbers, which are names of something, are picked. Of channels that make no colours the first one, of a
    volume the slice in the middle, and a row of numbers as many as a square has is the picture that it was."""
    exact = not (x.is_floating_point() or x.is_complex())
    x = x.detach().real.float() if x.is_complex() else x.detach().float()
    while x.dim() > 3:
        x = x.select(1, x.shape[1] // 2)
    if x.dim() == 3:
        return _picture(x, exact)
    if x.dim() == 2:
        return _smaller(x, LONG if min(x.shape) <= NARROW else SIDE, exact)
    side = math.isqrt(x.numel())
    if not exact and side * side == x.numel() >= NARROW**2:
        return _smaller(x.reshape(side, side), SIDE, exact)
    return _smaller(x.reshape(1, -1), LONG, exact).flatten()


def _picture(x: Tensor, exact: bool) -> Tensor:
    """Of (channels, rows, columns), or with the channels last."""
    if x.shape[0] not in COLOURS and x.shape[2] in COLOURS:
        x = x.movedim(2, 0)
    channels = x[:3] if x.shape[0] in COLOURS[1:] else x[:1]
    small = torch.stack([_smaller(each, SIDE, exact) for each in channels], -1)
    return small if len(channels) == 3 else small[..., 0]


def _smaller(x: Tensor, most: int, exact: bool) -> Tensor:
    rows, columns = (min(size, most) for size in x.shape)
    if (rows, columns) == tuple(x.shape) or x.numel() == 0:
        return x.clone()
    if exact:
        at = [torch.arange(n, device=x.device) * size // n for n, size in zip((rows, columns), x.shape, strict=True)]
        return x[at[0][:, None], at[1][None]]
    return F.adaptive_avg_pool2d(x[None], (rows, columns))[0]
