"""In which order the numbers of an input seem to have lain in memory before it was given its shape.

Neighbours along time or along a row of pixels are alike; a view or reshape that deals the numbers out to other axes
leaves the likeness where it was in memory. (N, C, T) viewed as (N, T, C) jumps after every T-th number, where one
channel ends and the next begins; an image (N, H, W, C) viewed as (N, C, H, W) is more like itself C numbers on.
"""

import torch
from jaxtyping import Float
from torch import Tensor

FEW = 8  # examples or rows, below which chance decides
CLEARLY = 2.0  # times the squared step elsewhere: between channels that have nothing in common it is many times that
MANY = 6  # channels: five steps that all happen to be among the longest tenth are one chance in 100,000
NEARER = 0.8  # of the squared step to the next number: in pictures a step grows with the distance
COLOURS = (2, 3, 4)  # channels that lie together in memory


def meant(x: Float[Tensor, "n *shape"]) -> tuple[int, ...] | None:
    """The shape whose order in memory `x` seems to have kept; `None` where it seems to be its own."""
    if len(x) < FEW or not x.is_floating_point():
        return None
    x = x.detach().float()
    if x.dim() == 3 and _jumps_between_channels(x):
        return (len(x), x.shape[2], x.shape[1])
    if x.dim() == 4 and _pixels_lie_together(x):
        return (len(x), x.shape[2], x.shape[3], x.shape[1])
    return None


def _jumps_between_channels(x: Float[Tensor, "n steps channels"]) -> bool:
    """Whether all steps in memory from one channel to the next are longer than nearly all others at the same place of a
    row: in a series that is its own, places of a row are alike at all times."""
    _, steps, channels = x.shape
    if channels < 3 or steps < FEW or steps == channels:
        return False
    squares = x.flatten(1).diff(dim=1).square().mean(0)
    place = torch.arange(1, steps * channels, device=x.device)
    between = place % steps == 0
    longest, usual = squares.new_zeros(channels), squares.new_zeros(channels)
    for phase in (place[between] % channels).unique().tolist():
        elsewhere = squares[~between & (place % channels == phase)]
        if len(elsewhere) < FEW:
            return False
        longest[phase], usual[phase] = elsewhere.quantile(0.9), elsewhere.mean()
    at, jumps = place[between] % channels, squares[between]
    limit = longest[at] if channels >= MANY else CLEARLY * longest[at]
    far = (jumps > limit) & (limit > 0)
    return bool(far.all() & (jumps.mean() > CLEARLY * usual[at].mean()))  # host sync


def _pixels_lie_together(x: Float[Tensor, "n channels height width"]) -> bool:
    channels = x.shape[1]
    if channels not in COLOURS or min(x.shape[2:]) < FEW:
        return False
    flat = x.flatten(1)
    next_one, next_pixel = (flat[:, lag:].sub(flat[:, :-lag]).square().mean() for lag in (1, channels))
    return bool((next_pixel > 0) & (next_pixel < NEARER * next_one))  # host sync
