"""What the examples of one batch, or the answers to them, have in common."""

import torch
from torch import Tensor

from diagnostics.monitor import functions

FEWEST = 8  # examples, of which some would differ


def of_inputs(inputs: list[Tensor]) -> dict[str, Tensor]:
    """How many of the examples of a batch are one, by everything that there is as many of."""
    batch = [x for x in inputs[:1] if x.dim() and len(x) >= FEWEST and x.numel() >= 2 * len(x)]  # not a time alone
    batch += [x for x in inputs[1:] if batch and x.dim() and len(x) == len(batch[0])]
    if not batch:
        return {}
    found = {"equal_examples": _equal_share(batch)}
    if not functions.holds_tokens(batch[0]) or any(x.is_floating_point() or x.is_complex() for x in batch):
        return found
    # Lengths and labels of a model that computes its loss tell no text; a mask is one token itself.
    texts = [_are_of_one_token(x.long()) for x in batch if functions.holds_tokens(x)]
    return found | {"one_token": torch.stack(texts).all()}


def _equal_share(batch: list[Tensor]) -> Tensor:
    """Of the examples, those that are one and the same, if most are: then it has the median sum."""
    rows = [x.reshape(len(x), -1) for x in batch]
    sums = torch.stack([(x.abs() if x.is_complex() else x).float().sum(1) for x in rows]).sum(0)
    at = (sums - sums.nanmedian()).abs().nan_to_num(torch.inf).argmin()
    return torch.stack([(x == x.index_select(0, at[None])).all(1) for x in rows]).all(0).float().mean()


def of_answers(output: Tensor, gradient: Tensor) -> Tensor | None:
    """Whether all numbers of each answer are the same one, from answer to answer another, though the loss asks for
    different ones."""
    if output.dim() != 2 or len(output) < FEWEST or output.shape[1] < 2:
        return None
    asked = (gradient != gradient[:, :1]).any()
    return (output == output[:, :1]).all() & (output[:, 0] != output[0, 0]).any() & asked


def _are_of_one_token(x: Tensor) -> Tensor:
    """Whether all rows are the same token as often as there is room, and then the same padding."""
    other = x != x[0, 0]
    last = (other[:, 1:] | ~other[:, :-1]).all() & ~other[:, 0].any()
    return last & ((x == x[0, 0]) | (x == torch.where(other, x, x.min()).max())).all()
