"""Edges of a graph, (2, E), that were viewed so, and not transposed, from a list of pairs (E, 2); and those of many
graphs that were put together as if all had the same nodes.

Source: the conventions of PyTorch Geometric, whose guide asks for `t().contiguous()` of such a list, and whose batches
add to the edges of each graph the number of nodes before it.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor.arguments import tensors_in

FEWEST = 32  # edges, of which a few could lie so by chance
MOST = 1 << 22  # edges, which are sorted to be looked up
GRAPHS = 4  # of which all but the first have no edge: fewer may be so
HALF = 0.5  # of the edges that have no way back, in a graph without directions whose ends were dealt out anew


def scrambled(given: Iterable[Any]) -> list[int]:
    """How many edges: in memory pairs follow each other that are sorted, or of which each comes both ways round, as
    lists of edges are, and those that the model reads are neither."""
    for x in filter(_are_edges, tensors_in(list(given))):
        pairs, read = x.reshape(-1, 2).T, x
        is_sorted = _rises(pairs[0]) and not _rises(read[0])
        if (is_sorted or _both_ways(pairs) == 1) and _both_ways(read) < HALF:
            return [x.shape[1]]
    return []


def of_the_first(given: Iterable[Any]) -> list[int]:
    """How many nodes a batch of graphs has, how many graphs, and how many of its first nodes all edges lie between:
    no more than the largest graph has, though there is an edge for every other node."""
    tensors = list(tensors_in(list(given)))
    edges = list(filter(_are_edges, tensors))
    for owner in filter(_are_owners, tensors) if edges else ():
        nodes, sizes = len(owner), torch.bincount(owner.long())
        of_nodes = any(x is not owner and x.dim() and len(x) == nodes for x in tensors)
        reached = 1 + max(int(x.max()) for x in edges)
        if of_nodes and len(sizes) >= GRAPHS and reached <= int(sizes.max()) and 2 * edges[0].shape[1] >= nodes:
            return [nodes, len(sizes), reached]
    return []


def _are_edges(x: Tensor) -> bool:
    plain = x.dim() == 2 and len(x) == 2 and FEWEST <= x.shape[1] <= MOST
    return plain and not x.is_floating_point() and not x.is_complex()


def _are_owners(x: Tensor) -> bool:
    """Of each node, the number of its graph: from 0 on, each graph's nodes together."""
    if x.dim() != 1 or not FEWEST <= len(x) <= MOST or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return False
    steps = x.diff()
    return int(x[0]) == 0 and bool(((steps == 0) | (steps == 1)).all())


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
