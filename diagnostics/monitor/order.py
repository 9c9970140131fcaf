"""In which order the numbers of an input seem to have lain in memory before it was given its shape.

Neighbours along time or along a row of pixels are alike; a view or reshape that deals the numbers out to other axes
leaves the likeness where it was in memory. (N, C, T) viewed as (N, T, C) jumps after every T-th number, where one
channel ends and the next begins; an image (N, H, W, C) viewed as (N, C, H, W) is more like itself C numbers on. Of
images (H, W, N) viewed as (N, H, W) each example is one pixel of many: numbers of one mean that have no neighbours.
"""

import torch
from jaxtyping import Float
from torch import Tensor

FEW = 8  # examples, steps or pixels, below which chance decides
PLACES, NUMBERS = 2**18, 2**22  # of an example, beyond which nothing is said; of the examples that are looked at
CLEARLY = 2.0  # times the squared step elsewhere: between channels that have nothing in common it is many times that
MANY = 6  # channels: five steps that all happen to be among the longest tenth are one chance in 100,000
OWN = 0.9  # of the squared step to the places beside: less is a series with its channels side by side, as it should be
NEARER = 0.8  # of the squared step to other places: in pictures a step grows with the distance
ALIKE = 0.1  # correlation of a number with the one beside it; of photographs and digits 0.4 to 0.9
STRUCTURE = 2.0  # variance of the means of rows, or of columns, over that of numbers drawn alike: 1 by chance
APART = 10.0  # times the spread of the examples' means that numbers drawn alike for all of them would have
COLOURS = 3  # channels that lie together in memory; two or four alternate in checkerboards and other patterns


def meant(x: Float[Tensor, "n *shape"]) -> tuple[int, ...] | None:
    """The shape whose order in memory `x` seems to have kept, `()` where examples came last in it; `None` where it
    seems to be its own."""
    if x.dim() not in (3, 4) or x.layout != torch.strided or not x.is_floating_point() or len(x) < FEW:
        return None
    if not 0 < x[0].numel() <= PLACES:
        return None
    some = x.detach()[: max(FEW, NUMBERS // x[0].numel())].float()
    if x.dim() == 3 and _jumps_between_channels(some):
        return (len(x), x.shape[2], x.shape[1])
    if x.dim() == 4 and _pixels_lie_together(some):
        return (len(x), x.shape[2], x.shape[3], x.shape[1])
    return () if x.dim() == 4 and _is_one_pixel_of_many(some) else None


def _jumps_between_channels(x: Float[Tensor, "n steps channels"]) -> bool:
    """Whether all steps in memory from one channel to the next are longer than nearly all others at the same place of a
    row: in a series that is its own, places of a row are alike at all times.

    A series that is most like itself a row later, and two, is its own. Where the channels' ends come at whole rows, as
    the days of a week do, they are longer than all others on average, and not the ends of all rows of a square picture.
    """
    _, steps, channels = x.shape
    if channels < 3 or steps < 2 * FEW or steps in (channels, channels**2):
        return False
    flat = x.flatten(1)
    if all(_is_own(flat, channels * rows) for rows in (1, 2)):  # host sync
        return False
    squares = flat.diff(dim=1).square().mean(0)
    place = torch.arange(1, steps * channels, device=x.device)
    between = place % steps == 0
    jumps, at = squares[between], place[between] % channels
    rows = torch.cat([squares.new_full((1,), torch.nan), squares.masked_fill(between, torch.nan)])
    elsewhere = rows.view(steps, channels)[:, at]  # (steps, channels - 1), NaN at the jumps themselves
    limit = elsewhere.nanquantile(0.9, dim=0)
    far = (jumps > (limit if channels >= MANY else CLEARLY * limit)) & (limit > 0)
    longer = jumps.mean() > CLEARLY * elsewhere.nanmean()
    if steps % channels == 0:
        longer &= NEARER * jumps.mean() > elsewhere.nan_to_num().max()
    return bool(far.all() & longer)  # host sync


def _is_own(flat: Tensor, lag: int) -> bool:
    beside = torch.minimum(_step(flat, lag - 1), _step(flat, lag + 1))
    return bool(_step(flat, lag) < OWN * beside)


def _pixels_lie_together(x: Float[Tensor, "n channels height width"]) -> bool:
    """Whether the pixel beside, so many numbers on, is nearer than all numbers before it, than the pixel after it, and
    along columns too."""
    _, channels, height, width = x.shape
    if channels != COLOURS or min(height, width) < FEW:
        return False
    flat = x.flatten(1)
    beside = _step(flat, channels)
    others = [*(_step(flat, lag) for lag in range(1, channels)), _step(flat, 2 * channels)]
    near = (beside > 0) & (beside < NEARER * torch.stack(others).min())
    return bool(near & (_step(flat, width * channels) < NEARER * _step(flat, width)))  # host sync


def _is_one_pixel_of_many(x: Float[Tensor, "n channels height width"]) -> bool:
    """Whether examples differ in their means far more than by chance, and within them no number is like the one beside
    or below it, nor rows or columns differ in theirs, as the pitches and times of noisy sounds do. Each example counts
    alike: of noisy images, as in diffusion, some have little noise."""
    if min(x.shape[2:]) < FEW:
        return False
    means = x.mean((1, 2, 3))
    rest = x - means[:, None, None, None]
    variance = rest.square().mean((1, 2, 3))
    varied = variance > 0
    if varied.sum() < FEW:  # host sync
        return False
    beside, below = (rest[..., 1:] * rest[..., :-1]), (rest[..., 1:, :] * rest[..., :-1, :])
    alike = torch.stack([each.mean((1, 2, 3))[varied] / variance[varied] for each in (beside, below)]).mean(1)
    along = [rest.mean(axis).square().mean((1, 2))[varied] * x.shape[axis] / variance[varied] for axis in (2, 3)]
    apart = x[0].numel() * means.var() / variance.mean()
    structured = torch.stack(along).mean(1) > STRUCTURE
    return bool((alike < ALIKE).all() & (apart > APART) & ~structured.any())  # host sync


def _step(flat: Float[Tensor, "n places"], lag: int) -> Float[Tensor, ""]:
    """Mean squared difference of numbers so far apart in memory."""
    return (flat[:, lag:] - flat[:, :-lag]).square().mean()
