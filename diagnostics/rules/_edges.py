"""Edges of a graph that join other nodes than they were meant to: scrambled by a view, or all in the first graph of a
batch.

Source: the conventions of PyTorch Geometric (`monitor/edges.py`).
"""

from collections.abc import Iterator

from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run


def scrambled(run: Run) -> Iterator[Finding]:
    """Node features tell much without neighbours, so that what learns is no proof."""
    told = run.meta["edges_scrambled"]
    if not told:
        return
    edges = int(told[0])
    yield found(
        "scrambled-view",
        run,
        (
            f"The {number(edges)} edges that the model is given as (2, {edges}) seem to be scrambled: in memory the "
            f"pairs of a list ({edges}, 2) follow each other, sorted or each both ways round, and what is read joins "
            "nodes of other pairs. A view or reshape deals numbers out to other axes; only a transpose moves the axes."
        ),
        ("edge_index = edges.t().contiguous() in place of edges.reshape(2, -1) or edges.view(2, -1)",),
        evidence={"edges": float(edges)},
        severity="warning",
    )


def of_the_first(run: Run) -> Iterator[Finding]:
    told = run.meta["edges_of_the_first"]
    if not told:
        return
    nodes, graphs, reached = (int(each) for each in told)
    yield found(
        "edge-offset",
        run,
        (
            f"All edges of a batch of {graphs} graphs lie between its first {reached} nodes, and the other "
            f"{number(nodes - reached)} have none: the edges of each graph still count its nodes from 0. What the "
            "others are joined with is not seen, and the first get the messages of all."
        ),
        (
            "where graphs are put together, add to each one's edges the number of nodes before it: "
            "edge_index + offset, offset += len(nodes)",
            "PyTorch Geometric does so for attributes with index or face in their names; for others Data needs an "
            "__inc__ of its own",
        ),
        evidence={"nodes": float(nodes), "graphs": float(graphs), "nodes with an edge, at most": float(reached)},
        severity=unless_it_learns(run, "critical", "warning"),
    )
