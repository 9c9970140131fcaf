"""Tied, frozen, grouped and copied parameters, two monitors on one model: what is recorded of each, and bit by bit."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics


class Tied(nn.Module):
    """An embedding that is the output layer as well, and a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.hidden = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.tokens.weight
        self.hidden.bias.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.tokens(tokens))))


def step_of(model: nn.Module, optimizer: Any, step: int) -> tuple[Tensor, Any]:
    tokens = torch.randint(0, 9, (20,), generator=torch.Generator().manual_seed(step))
    again = lambda: F.cross_entropy(model(tokens), tokens + 1)  # noqa: E731
    optimizer.zero_grad()
    loss = again()
    loss.backward()
    optimizer.step()
    return loss, again


def test_tied_frozen_and_grouped_parameters(tmp_path: Path) -> None:
    model = Tied()
    groups = [{"params": [model.tokens.weight], "lr": 0.3}, {"params": [model.hidden.weight], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    gradients, moved = [], []
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=1e9) as monitor:
        for step in range(4):
            before = [p.detach().clone() for p in model.parameters()]
            loss, again = step_of(model, optimizer, step)
            gradients.append([math.nan if p.grad is None else float(p.grad.norm()) for p in model.parameters()])
            moved.append([float((p.detach() - q).norm()) for p, q in zip(model.parameters(), before, strict=True)])
            monitor.step(loss, again)
    run = diagnostics.load(tmp_path / "run")
    layers = {layer["name"]: layer for layer in run.meta["layers"]}
    assert list(layers) == ["tokens.weight", "hidden.weight", "hidden.bias"]
    assert layers["tokens.weight"]["tied"] == ["head.weight"]  # once, under both names
    assert [layer["frozen"] for layer in layers.values()] == [False, False, True]
    _, names, norms = run.matrix("layers", "grad_norm")
    assert list(names) == list(layers)
    for row in range(4):
        assert norms[row].tolist() == pytest.approx(gradients[row], rel=1e-5, nan_ok=True)
        updates = run.matrix("layers", "update_norm")[2][row].tolist()
        assert updates == pytest.approx(moved[row], rel=1e-4)
        assert updates[:2] == pytest.approx([0.3 * gradients[row][0], 0.01 * gradients[row][1]], rel=1e-4)
    assert [group["lr"] for group in run.meta["hyperparameters"]] == [0.3, 0.01]
    assert not set(run.table("events")["kind"]) & {"measurement-failed", "not-in-optimizer"}
    assert any("hidden.bias" in item.what and not item.seen for item in diagnostics.doctor(model, optimizer))


def test_silent_rows_are_counted_without_any_hook(tmp_path: Path) -> None:
    """Forty of a hundred units are forced dead; their activation is a function, which no module hook sees."""
    torch.manual_seed(0)
    first, second = nn.Linear(12, 100), nn.Linear(100, 4)
    model = nn.ModuleList([first, second])
    with torch.no_grad():
        first.bias[:40] = -1000
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = second(F.relu(first(torch.randn(512, 12)))).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    _, names, shares = diagnostics.load(tmp_path / "run").matrix("layers", "silent_fraction")
    assert shares[:, list(names).index("0.weight")].tolist() == pytest.approx([0.4] * 3)
    assert shares[:, list(names).index("1.weight")].tolist() == [0] * 3


@pytest.mark.parametrize("closure", [True, False], ids=["closure", "alone"])
def test_two_monitors_of_one_optimizer(closure: bool, tmp_path: Path) -> None:
    model = Tied()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    alone = copy.deepcopy(model)
    other = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    monitors = [
        diagnostics.watch(model, optimizer, tmp_path / f"{every}", every=every, curvature_every=3, budget=1e9)
        for every in (1, 2)
    ]
    norms, losses = [], []
    for step in range(6):
        step_of(alone, other, step)
        loss, again = step_of(model, optimizer, step)
        losses.append(loss.item())
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)))
        for monitor in monitors:
            monitor.step(loss, again if closure else None)
    for every, monitor in zip((1, 2), monitors, strict=True):
        monitor.close()
        run = diagnostics.load(tmp_path / f"{every}")
        scalars = run.table("scalars")
        assert list(scalars["loss"]) == losses
        assert list(scalars["grad_norm"]) == pytest.approx(norms, rel=1e-5)
        assert list(scalars["micro_batches"]) == [1] * 6
        assert run.table("units").groupby("step").size().eq(1).all()  # no forward of one is counted by the other
        assert list(run.table("curvature")["step"]) == ([1, 3, 6] if closure else [])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


def test_an_averaged_copy_is_not_the_watched_model(tmp_path: Path) -> None:
    """An exponential moving average copies a model while it is watched; its forwards are none of the training's."""
    model = Tied()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        average = None
        for step in range(5):
            loss, _ = step_of(model, optimizer, step)
            monitor.step(loss)
            average = average or torch.optim.swa_utils.AveragedModel(model)
            average.update_parameters(model)
            average.module(torch.randint(0, 9, (7,)))
    units = diagnostics.load(tmp_path / "run").table("units")
    assert units.groupby("step").size().eq(1).all() and len(units) == 4


class Entries(nn.Module):
    """Weights in a container that compares itself entry by entry and takes no `remove_duplicate`, as torchrl's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))

    def __eq__(self, other: object) -> Any:
        return torch.ones(2) == 1  # whose truth is an error

    __hash__ = nn.Module.__hash__

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Any:
        yield from super().named_parameters(prefix, recurse)


class Lent(Entries):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Entries(), Entries()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight) @ self.first.weight.t() + x @ self.second.weight.mean(1)[:, None]


def test_a_container_of_weights_with_ways_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Lent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path, every=1, curvature_every=2, budget=1e9) as monitor:
        for _ in range(6):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x: model(x).square().mean())
    run = diagnostics.load(tmp_path)
    events = run.table("events")
    assert [each["name"] for each in run.meta["layers"]] == ["weight", "first.weight", "second.weight"]
    assert not events["kind"].isin(["measurement-failed", "measurement-off"]).any(), list(events["message"])
    assert len(run.table("curvature")) and len(run.table("units"))
