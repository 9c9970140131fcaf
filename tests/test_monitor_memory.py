"""What watching holds between two updates: bytes of tensors that are alive, beyond training's own."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.curvature import Estimate, batches
from diagnostics.curvature.scaling import Scaling
from diagnostics.monitor import tracking

pytestmark = pytest.mark.exhaustive  # minutes; `make test` has a few of each kind elsewhere

WIDTH, EIGENVALUES = 300, 3
SMALL = 200_000  # bytes: windows of units, moments of inputs, folded batches


def storages() -> dict[int, int]:
    """Bytes of every tensor's memory, once for tensors that share it."""
    gc.collect()
    # fake and functional tensors, which the compiler's tests leave behind, have no memory
    plain = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
    tensors = [each for each in plain if not torch._is_functional_tensor(each)]
    found = [t.untyped_storage() for t in tensors]
    # a tensor that is reached through a parameter only (its gradient) is not in the collector's list
    found += [t.grad.untyped_storage() for t in tensors if t.is_leaf and t.grad is not None]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


class Run:
    """One small training; `held()` is what the watched one has beside the weights, gradients and optimizer's state."""

    def __init__(self, folder: Path, optimizer: type[torch.optim.Optimizer], **options: Any) -> None:
        self.model = nn.Sequential(
            nn.Linear(20, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)
        )
        self.bytes = 4 * sum(p.numel() for p in self.model.parameters())
        self.optimizer = optimizer(self.model.parameters(), lr=1e-3)
        self.before = storages()
        self.monitor = diagnostics.watch(self.model, self.optimizer, folder, budget=1e9, **options)

    def update(self, closure: bool) -> None:
        x, y = torch.randn(64, 20), torch.randint(0, 3, (64,))
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        self.monitor.step(loss, (lambda: F.cross_entropy(self.model(x), y)) if closure else None)

    def held(self) -> int:
        training = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        training += [p.grad for p in self.model.parameters() if p.grad is not None]
        own = self.before.keys() | {t.untyped_storage().data_ptr() for t in training}
        return sum(size for place, size in storages().items() if place not in own)


@contextmanager
def trained(folder: Path, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, **options: Any) -> Iterator[Run]:
    run = Run(folder / "run", optimizer, eigenvalues=EIGENVALUES, **options)
    with run.monitor:
        yield run


@pytest.fixture(autouse=True)
def _a_small_model_is_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bounded by a number of entries is no multiple of these weights."""
    monkeypatch.setattr(batches, "FOLDED", 1009)


def test_without_curvature_nothing_stays_but_a_sample_for_the_partner(tmp_path: Path) -> None:
    with trained(tmp_path, every=5) as run:
        for step in range(1, 22):
            run.update(closure=False)
            pairs = 2 * run.bytes if step in (1, 2, 20) else 0  # the last gradient and update
            if step in (1, 2, 3, 4, 6, 20, 21):
                assert run.held() <= pairs + SMALL, step


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, pytest.param(torch.optim.Adam, marks=pytest.mark.by_hand)])
def test_between_estimates(optimizer: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    vectors = EIGENVALUES + 3 + (optimizer is torch.optim.Adam)  # Adam's P
    with trained(tmp_path, optimizer, every=1000, curvature_every=12) as run:
        for step in range(1, 28):
            run.update(closure=True)
            pairs = 2 if step <= 2 else 0
            if step in (1, 2, 3, 10, 12, 13, 20, 27):
                assert run.held() <= (vectors + pairs) * run.bytes + SMALL, step


def test_ten_times_the_updates_hold_no_more(tmp_path: Path) -> None:
    held = {}
    with trained(tmp_path, every=3, curvature_every=25) as run:
        for step in range(1, 161):
            run.update(closure=True)
            if step in (16, 160):
                held[step] = run.held()
    assert held[160] <= held[16] + 20_000  # one measured update more in the windows of units


def test_closing_lets_go_of_everything(tmp_path: Path) -> None:
    with trained(tmp_path, every=2, curvature_every=5) as run:
        for _ in range(12):
            run.update(closure=True)
    run.monitor.model = run.monitor.optimizer = None  # type: ignore[assignment]
    assert run.held() <= SMALL


def test_vectors_rest_on_the_host_where_a_device_is_short() -> None:
    device, cpu = torch.device("meta"), torch.device("cpu")
    assert tracking.resting_place(device, 10, 1000) == device
    assert tracking.resting_place(device, 500, 1000) == cpu
    assert tracking.resting_place(cpu, 500, 1000) == cpu


def test_an_estimate_moves_as_a_whole() -> None:
    scaling = Scaling(torch.ones(4), torch.ones(4), torch.ones(4), 0.0, 1.0, 1.0, 1.0, 0.5)
    estimate = Estimate("cold", "double backward", 4, 1, 0.0, scaling=scaling, vectors=torch.ones(2, 4))
    estimate = Estimate(**{**vars(estimate), "preconditioned_vector": torch.ones(4), "smallest_vector": torch.ones(4)})
    assert estimate.lasting().bytes == 4 * (2 * 4 + 4 + 4 + 4)
    moved = estimate.lasting().to(torch.device("meta"))
    tensors = [t for t in (*vars(moved).values(), *vars(moved.scaling).values()) if isinstance(t, Tensor)]
    assert len(tensors) == 4 and all(t.is_meta for t in tensors)


def test_folding_keeps_inner_products() -> None:
    a, b = torch.randn(50_000, dtype=torch.float64), torch.randn(50_000, dtype=torch.float64)
    b += a
    a[::256] *= 30  # a column of a weight matrix whose input is large
    short = [batches.folded(v, 4099) for v in (a, b)]
    error = (torch.dot(*short) - torch.dot(a, b)) / (a.norm() * b.norm())
    assert len(short[0]) == 4099 and abs(float(error)) < 4 * (2 / 4099) ** 0.5
    assert batches.folded(a, 50_000) is a
