"""Edges of a graph that were viewed as (2, E) where a transpose was meant, and edges as they are; edges of many graphs,
all between the nodes of one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor.edges import of_the_first, scrambled

NODES = 100


def pairs(both_ways: bool, in_order: bool) -> Tensor:
    """A random graph as a list of edges (E, 2)."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, NODES, (300, 2), generator=generator)
    found = torch.cat([found, found.flip(1)]) if both_ways else found
    return found.unique(dim=0) if in_order else found[torch.randperm(len(found), generator=generator)]


LISTS = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize(("both_ways", "in_order"), LISTS)
@pytest.mark.every_case
def test_a_list_that_was_viewed(both_ways, in_order):
    edges = pairs(both_ways, in_order)
    assert scrambled([torch.randn(NODES, 4), edges.reshape(2, -1)]) == [len(edges)]


@pytest.mark.parametrize(("both_ways", "in_order"), [*LISTS, (False, False)])
@pytest.mark.every_case
def test_a_list_that_was_transposed(both_ways, in_order):
    edges = pairs(both_ways, in_order).t()
    for given in (edges, edges.contiguous(), edges.flip(0), edges[:, torch.randperm(edges.shape[1])]):
        assert scrambled([given]) == []


@pytest.mark.parametrize(
    "x",
    [
        torch.randint(0, 50, (2, 200)),
        torch.zeros(2, 200, dtype=torch.long),
        torch.arange(400).view(2, 200),
        torch.arange(40).repeat_interleave(5).expand(2, 200),
        torch.randint(0, 2, (2, 64)) > 0,
        torch.randn(2, 200),
    ],
    ids=["tokens", "padding", "places", "grid", "mask", "numbers"],
)
@pytest.mark.every_case
def test_other_pairs_of_rows(x):
    assert scrambled([x]) == []


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.own(x) + self.others(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))


@pytest.mark.parametrize("viewed", [True, False])
def test_it_is_told(viewed, tmp_path):
    torch.manual_seed(0)
    model, x, y = Sums(), torch.randn(NODES, 4), torch.randn(NODES, 1)
    edges = pairs(True, True)
    edges = edges.reshape(2, -1) if viewed else edges.t().contiguous()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with diagnostics.watch(model, optimizer, tmp_path, curvature_every=0) as monitor:
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x, edges), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x, edges), y))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert [each.cause for each in found] == ["scrambled-view"] * viewed
    assert not viewed or "edges.t().contiguous()" in found[0].remedies[0]


class Graphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.answer = Sums(), nn.Linear(1, 1)

    def forward(self, x: Tensor, edges: Tensor, owner: Tensor) -> Tensor:
        sums = x.new_zeros(int(owner[-1]) + 1, 1).index_add(0, owner, self.nodes(x, edges))
        return self.answer(sums)[:, 0]


def batch(offset: bool, graphs: int = 12, features: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Rings of different sizes, each edge both ways round."""
    sizes, edges, nodes = torch.randint(5, 12, (graphs,)), [], 0
    for size in sizes.tolist():
        there = torch.stack([torch.arange(size), (torch.arange(size) + 1) % size])
        edges.append(torch.cat([there, there.flip(0)], 1) + (nodes if offset else 0))
        nodes += size
    return torch.randn(nodes, features), torch.cat(edges, 1), torch.arange(graphs).repeat_interleave(sizes)


def test_edges_without_offset():
    x, edges, owner = batch(offset=False)
    assert of_the_first([x, edges, owner]) == [len(x), 12, int(torch.bincount(owner).max())]


@pytest.mark.every_case
def test_edges_that_lie_as_they_should():
    x, edges, owner = batch(offset=True)
    assert of_the_first([x, edges, owner]) == []
    assert of_the_first([x, edges % 3, edges, owner]) == []  # what looks like edges may be their kinds
    assert of_the_first([*batch(offset=False, graphs=3)]) == []
    assert of_the_first([x, edges]) == of_the_first([edges, owner]) == of_the_first([]) == []
    assert of_the_first([x, edges % 5, torch.zeros(len(x), dtype=torch.long)]) == []  # one graph


@pytest.mark.every_case
@pytest.mark.parametrize("offset", [True, False])
def test_edges_without_offset_are_told(offset, tmp_path):
    torch.manual_seed(0)
    model = Graphs()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with diagnostics.watch(model, optimizer, tmp_path, curvature_every=0) as monitor:
        for _ in range(30):
            x, edges, owner = batch(offset)
            y = torch.randn(12)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x, edges, owner), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, e=edges, o=owner, y=y: F.mse_loss(model(x, e, o), y))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert [each.cause for each in found] == ["edge-offset"] * (not offset)
