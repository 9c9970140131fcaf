"""Whether targets lie as the pictures do that they belong to, or would fit them better mirrored or turned.

Nothing is known of how a target is seen in its picture, so that the share of its variance is taken which the picture's
colours and edges explain, R^2, as it lies and in the other placements of a rectangle or square; and what chance leaves
of that is what the same picture has with the targets of other examples.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SIDE = 16  # of the grid that both are averaged on: what is off by less than a cell or two hardly matters
CHANNELS = 8  # those that vary most, of more
_LITTLE = 1e-3  # of the largest singular value: channels that are one another's multiples

# The eight placements of a square as `_placed` counts them, and all sets that random flips and turns make: subgroups.
MIRRORS = {
    "mirrored left to right": (0, 1),
    "mirrored top to bottom": (0, 2),
    "turned upside down": (0, 3),
    "mirrored or turned upside down": (0, 1, 2, 3),
}
TURNS = {
    "with rows and columns exchanged": (0, 4),
    "mirrored along the other diagonal": (0, 7),
    "turned by quarters": (0, 3, 5, 6),
    "mirrored along a diagonal or turned upside down": (0, 3, 4, 7),
    "mirrored or turned in any way": (0, 1, 2, 3, 4, 5, 6, 7),
}


def placements(square: bool) -> dict[str, tuple[int, ...]]:
    return MIRRORS | TURNS if square else MIRRORS


def small_map(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n few rows columns"]:
    """Averaged over neighbours; of many channels those that vary most."""
    x = x.detach().float()
    if x.shape[1] > CHANNELS:
        x = x[:, x.var((0, 2, 3)).topk(CHANNELS).indices]
    rows, columns = (min(SIDE, size) for size in x.shape[2:])
    return F.adaptive_avg_pool2d(x, (rows, columns))


def fits(
    pictures: Float[Tensor, "n c rows columns"], targets: Float[Tensor, "n k rows columns"]
) -> Float[Tensor, "n n g"]:
    """R^2 of each target, in each placement, by each picture. Placements of a square if it is one."""
    span = _span(pictures)
    placed = _placed(targets).flatten(3)
    placed = placed - placed.mean(-1, keepdim=True)
    explained = torch.einsum("ifp,gjcp->ijgcf", span, placed).square().sum((-1, -2))
    return explained / placed.square().sum((-1, -2)).T.clamp(min=torch.finfo().tiny)


def related(fit: Float[Tensor, "n n g"], chosen: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Means over the examples, of the largest share that one placement has of all R^2, and of the share of the one that
    is given, each less what it is with targets of others. Where targets lie as pictures do the second is the larger:
    what lifts the given placement lifts the best one by no more."""
    share = _shares(fit, chosen)
    return _beyond_others(share.amax(-1)), _beyond_others(share[..., 0])


def as_given(fit: Float[Tensor, "n n g"], chosen: tuple[int, ...]) -> Tensor:
    """Mean share of the given placement: 1 where it has all of R^2, 0 where it has no more than the others."""
    own = _shares(fit, chosen)[..., 0].diagonal().mean()
    return (own - 1 / len(chosen)) / (1 - 1 / len(chosen))


def _shares(fit: Tensor, chosen: tuple[int, ...]) -> Tensor:
    some = fit[..., list(chosen)]
    return (some + torch.finfo().tiny) / (some + torch.finfo().tiny).sum(-1, keepdim=True)


def _beyond_others(values: Float[Tensor, "n n"]) -> Tensor:
    own, n = values.diagonal(), len(values)
    return (own - (values.sum(1) - own) / (n - 1)).mean()


def _span(pictures: Tensor) -> Float[Tensor, "n few places"]:
    """Orthonormal rows of what a picture's channels and its edges span, without the constant."""
    across = F.pad(pictures[..., 1:] - pictures[..., :-1], (0, 1))
    down = F.pad(pictures[..., 1:, :] - pictures[..., :-1, :], (0, 0, 0, 1))
    edges = (across.square() + down.square()).sum(1, keepdim=True).sqrt()
    rows = torch.cat([pictures, edges], 1).flatten(2)
    _, sizes, span = torch.linalg.svd(rows - rows.mean(-1, keepdim=True), full_matrices=False)
    return span * (sizes > _LITTLE * sizes[:, :1])[..., None]


def _placed(x: Tensor) -> Float[Tensor, "g n k rows columns"]:
    square = x.shape[-1] == x.shape[-2]
    sides = [x, x.transpose(-1, -2)] if square else [x]
    return torch.stack([side.flip(axes) for side in sides for axes in ((), (-1,), (-2,), (-1, -2))])
