"""Which dimension a recurrent net or attention runs along: time, or by mistake the batch.

`nn.LSTM` and its like read the first dimension as time unless told otherwise by `batch_first=True`, and every shape
fits. It is the batch where the model is given as many examples, and gives as many answers.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from diagnostics import stats
from diagnostics.monitor import functions

Ends = tuple[Size, Size]  # of what a model was given, and of its answer


Read = tuple[str, int, int, bool]  # by a call of a module: steps and number of sequences, and whether batch_first


def read(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[int, int, bool] | None:
    """Steps and number of the sequences of this call, and whether by `batch_first`; `None` where they are packed,
    single or not known."""
    x = args[0] if args else kwargs.get("query")
    if not isinstance(x, Tensor) or x.dim() != 3:
        return None
    batch_first = function in functions.RECURRENT and isinstance(args[-1], bool) and args[-1]
    return (x.shape[1], x.shape[0], True) if batch_first else (x.shape[0], x.shape[1], False)


@torch.no_grad()
def units(kind: stats.Kind, states: Tensor) -> stats.UnitCounts:
    """Of a plain recurrent net's last layer, by its states at all steps, from which follows what its units received."""
    below_one = 1 - torch.finfo(states.dtype).eps
    received = torch.atanh(states.clamp(-below_one, below_one)) if kind.saturates else states
    return stats.count_units(kind, received, states, channels_first=False)


def last_states(out: Sequence[Any]) -> list[Tensor]:
    """Of a recurrent call of several layers or directions, which come first, and of as many sequences as come next."""
    states = [each for each in functions.tensors(tuple(out[1:])) if each.dim() == 3]
    return [each for each in states if 1 < each.shape[0] != each.shape[1] > 1]


def ends(args: Iterable[Any], output: Any) -> list[Ends]:
    """Of a call of the model, if it is given a tensor first and answers with one."""
    plain = [each for each in args if isinstance(each, Tensor) and not each.is_nested][:1]
    return [(each.shape, output.shape) for each in plain if isinstance(output, Tensor) and not output.is_nested]


def along_batch(ends: Sequence[Ends], seen: Iterable[Read], counted: Collection[tuple[int, int]] = ()) -> list[list]:
    """Of the calls in one call of the model those that run along the batch: module, steps, sequences, and what tells -
    "positions" where these are counted along the other dimension (`counted`), which nothing runs along; "batch_first"
    where it is a mistake, "answer" where it is missing, by an answer of (sequences, examples, ...).

    Time comes first on purpose where the answer holds the sequences in another dimension. Sizes may agree by chance: of
    as many steps as examples, where the sequences are those of each example's parts.
    """
    if len(ends) != 1 or not ends[0][0] or not ends[0][1]:
        return []
    ((batch, *given), answer) = ends[0]
    calls = dict.fromkeys(seen)
    found = list[list]()
    for name, steps, sequences, batch_first in calls:
        if steps != batch or min(batch, sequences) < 2 or sequences == steps:
            continue
        untouched = (steps, sequences) in counted and not any(each[1] == sequences for each in calls)
        if answer[0] == batch and (sequences % steps or sequences in given):
            if untouched or not any(size % sequences == 0 for size in answer[1:]):
                found.append([name, steps, sequences, *(["positions"] if untouched else [])])
        elif tuple(answer[:2]) == (sequences, batch) and sequences % steps and sequences not in given[:1]:
            found.append([name, steps, sequences, "batch_first" if batch_first else "answer"])
    return found
