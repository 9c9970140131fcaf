"""On an accelerator: nothing waits for it on unmeasured steps, and what is sent arrives complete and in order.

Here the CPU stands in for the device: reading a number from a tensor is counted as the wait it would be there.
"""

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import diagnostics
from diagnostics.monitor import transfer


class Reads(TorchDispatchMode):
    """Counts operations that bring a number from the device to the program."""

    READS = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        floating = any(isinstance(a, torch.Tensor) and a.dtype != torch.uint8 for a in args)
        if str(func).startswith(self.READS) and floating:  # bytes are the state of the CPU's own generator
            self.count += 1
        return func(*args, **(kwargs or {}))


class Late:
    """An event that is ready when it is asked for the second time."""

    asked = 0

    def __init__(self, device: Any) -> None:
        self.asked = 0

    def query(self) -> bool:
        self.asked += 1
        return self.asked > 1

    def synchronize(self) -> None:
        return None


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "on_host", lambda device: False)
    monkeypatch.setattr(transfer, "mark", Late)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "gradient scaler"])
def test_waits_a_step(accelerator: None, scaled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    truth, waits = [], Counter[int]()
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=5, curvature_every=10**6, budget=1e9) as monitor:
        for step in range(1, 31):
            x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
            optimizer.zero_grad()
            with Reads() as reads:
                loss = F.cross_entropy(model(x), y)
                (loss * 1024 if scaled else loss).backward()
                if scaled:  # what a scaler does to gradients, without its own look at them
                    for parameter in model.parameters():
                        parameter.grad /= 1024
                optimizer.step()
                if step > 12:  # the batches that follow the estimate at the first step are over
                    monitor.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y))
            if step <= 12:
                monitor.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y))
            else:
                waits[step] = reads.count
            truth.append(loss.item())
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("scalars")["loss"]) == truth
    assert list(run.matrix("layers", "grad_norm")[0]) == [1, 2, 5, 10, 15, 20, 25, 30]
    assert {step: count for step, count in waits.items() if step % 5} == dict.fromkeys(
        [step for step in range(13, 31) if step % 5], 0
    )
    assert all(count <= 1 for count in waits.values())


def test_what_is_sent_arrives_in_order(accelerator: None) -> None:
    courier = transfer.Courier(torch.device("cpu"))
    arrived: list[dict[str, Any]] = []
    for i in range(4):
        courier.send({"a": torch.tensor(i), "b": torch.arange(3.0) + i, "c": "text", "d": 0.5}, arrived.append)
        courier.collect()
    assert len(arrived) < 4
    courier.collect(wait=True)
    assert arrived == [{"a": i, "b": [i, i + 1.0, i + 2.0], "c": "text", "d": 0.5} for i in range(4)]


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_synchronization_on_unmeasured_steps(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=100, budget=1e9) as monitor:
        for step in range(1, 40):
            x, y = torch.randn(32, 6, device="cuda"), torch.zeros(32, device="cuda").long()
            torch.cuda.set_sync_debug_mode("error" if step > 5 else "default")
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
        torch.cuda.set_sync_debug_mode("default")
    assert diagnostics.load(tmp_path / "run").table("scalars")["loss"].notna().all()


def storages() -> dict[int, int]:
    """Of all plain tensors in the process: address and bytes."""
    found = [each.untyped_storage() for each in gc.get_objects() if type(each) is torch.Tensor]
    return {each.data_ptr(): each.nbytes() for each in found}


@pytest.mark.exhaustive
def test_a_record_on_its_way_holds_no_copy_of_the_weights(accelerator: None, tmp_path: Path) -> None:
    model = nn.Linear(333, 333)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    held, others = [], storages()
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=6, budget=1e9, curvature_every=0) as monitor:
        for _ in range(13):
            x = torch.randn(4, 333)
            optimizer.zero_grad()
            loss = model(x).square().mean()
            gc.collect()
            found = {where: size for where, size in storages().items() if where not in others}
            held.append(sum(found.values()) / model.weight.nbytes)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert max(held) < 2.5, held  # samples of one gradient and one update, for the partner
