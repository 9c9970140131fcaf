"""Edges of a graph, (2, E), that were viewed so, and not transposed, from a list of pairs (E, 2).

Source: the convention of PyTorch Geometric, whose guide asks for `t().contiguous()` of such a list.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor.arguments import tensors_in

FEWEST = 32  # edges, of which a few could lie so by chance
MOST = 1 << 22  # edges, which are sorted to be looked up
HALF = 0.5  # of the edges that have no way back, in a graph without directions whose ends were dealt out anew


def scrambled(given: Iterable[Any]) -> list[int]:
    """How many edges: in memory pairs follow each other that are sorted, or of which each comes both ways round, as
    lists of edges are, and those that the model reads are neither."""
    for x in tensors_in(list(given)):
        plain = x.dim() == 2 and len(x) == 2 and FEWEST <= x.shape[1] <= MOST
        if plain and not x.is_floating_point() and not x.is_complex():
            pairs, read = x.reshape(-1, 2).T, x
            is_sorted = _rises(pairs[0]) and not _rises(read[0])
            if (is_sorted or _both_ways(pairs) == 1) and _both_ways(read) < HALF:
                return [x.shape[1]]
    return []


def _rises(x: Tensor) -> bool:
    """By many steps: numbers that are hardly ever others rise by chance."""
    steps = x.diff()
    return bool((steps >= 0).all()) and int((steps > 0).sum()) >= FEWEST // 4


def _both_ways(edges: Tensor) -> float:
    """Share of the edges whose way back is among them."""
    a, b = edges.long()
    most = int(max(a.max(), b.max())) + 1
    there, back = a * most + b, b * most + a
    return float(torch.isin(back.unique(), there).float().mean())
