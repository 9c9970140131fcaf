"""Which dimension a recurrent net or attention runs along: time, or by mistake the batch.

`nn.LSTM` and its like read the first dimension as time unless told otherwise by `batch_first=True`, and every shape
fits. It is the batch where the model is given as many examples, and gives as many answers.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Size, Tensor

from diagnostics.monitor import functions

Ends = tuple[Size, Size]  # of what a model was given, and of its answer


def read(function: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[int, int] | None:
    """Steps and number of the sequences of this call; `None` where they are packed, single or not known."""
    x = args[0] if args else kwargs.get("query")
    if not isinstance(x, Tensor) or x.dim() != 3:
        return None
    batch_first = function in functions.RECURRENT and isinstance(args[-1], bool) and args[-1]
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


def along_batch(ends: Iterable[Ends], seen: Iterable[tuple[str, int, int]]) -> list[list]:
    """Of (module, steps, sequences) those that run along the batch.

    Time comes first on purpose where the answer has the sequences as its second dimension; equal sizes cannot tell.
    """
    batches = {given[0]: answer for given, answer in ends if given and answer and given[0] == answer[0]}
    return [
        [name, steps, sequences]
        for name, steps, sequences in dict.fromkeys(seen)
        if steps in batches and sequences > 1 and sequences != steps and sequences not in batches[steps][1:]
    ]
