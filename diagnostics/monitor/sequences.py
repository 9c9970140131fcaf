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


def read(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[int, int] | None:
    """Steps and number of the sequences of this call; `None` where they are packed, single or not known."""
    x = args[0] if args else kwargs.get("query")
    if not isinstance(x, Tensor) or x.dim() != 3:
        return None
    batch_first = function in functions.RECURRENT and isinstance(args[-1], bool) and args[-1]
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


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


def along_batch(
    ends: Sequence[Ends], seen: Iterable[tuple[str, int, int]], counted: Collection[tuple[int, int]] = ()
) -> list[list]:
    """Of (module, steps, sequences) in one call of the model those that run along the batch; with "positions" where
    these are counted along the other dimension (`counted`), which nothing runs along.

    Time comes first on purpose where the answer holds the sequences in another dimension. Sizes may agree by chance: of
    as many steps as examples, where the sequences are those of each example's parts.
    """
    if len(ends) != 1 or not ends[0][0] or not ends[0][1]:
        return []
    ((batch, *given), (answers, *answer)) = ends[0]
    calls = dict.fromkeys(seen)
    proven = {
        (steps, sequences)
        for _, steps, sequences in calls
        if (steps, sequences) in counted and not any(each[1] == sequences for each in calls)
    }
    return [
        [name, steps, sequences, *(["positions"] if (steps, sequences) in proven else [])]
        for name, steps, sequences in calls
        if steps == batch == answers > 1
        and sequences > 1
        and ((steps, sequences) in proven or not any(size % sequences == 0 for size in answer))
        and (sequences % steps or sequences in given)
        and sequences != steps
    ]
