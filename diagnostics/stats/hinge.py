"""Labels of a hinge loss, max(0, 1 - t y), read off its gradient: -t where it is above 0, and none where it is not.

Those without a gradient add nothing, if they are right by a margin, or 1 each, if their label is 0. (So does what a
clipped loss, as min(1, 1 - y), says of an output below 0; there no output below 0 has a gradient.)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diagnostics.stats.norms import wide

_WHOLE = 1e-2  # how near a whole number the sum of what they add must come; by chance one in fifty does


def labels_of_zero(
    output: Float[Tensor, "*any"], gradient: Float[Tensor, "*any"], loss: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Share of labels that are 0 where the loss is the mean or sum of such errors, and no label is -1; else NaN."""
    y, g = (x.detach().flatten().to(wide(x.device)) for x in (output, gradient))
    heard, size = g != 0, g.abs().amax()
    total = loss.detach().to(y) / size  # of the errors: each gradient is of one size
    margins = torch.where(heard, 1 + g / size * y, 0)
    silent = total - margins.sum()
    zeros = silent.round()
    is_hinge = (
        (heard <= ((g + size).abs() <= 1e-3 * size)).all()  # labels of 1
        & ((size - 1).abs().minimum((size * len(y) - 1).abs()) <= 1e-3)
        & (margins >= 0).all()
        & ((silent - zeros).abs() <= _WHOLE)
        & (zeros >= 0)
        & (zeros <= (~heard).sum())
        & ((heard & (y < 0)).any() | (zeros > (~heard & (y <= 0)).sum()))
    )
    return torch.where(is_hinge, zeros / len(y), torch.nan).float()
