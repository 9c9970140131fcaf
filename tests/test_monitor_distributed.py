"""Two gloo processes: what is recorded is the truth of the whole batch, not of one process."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import diagnostics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS = 4


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].bias[:4] = -100  # four units that no input wakes
        model[0].bias[4] = -2.2  # one that few do
    return model


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, 400, 6, generator=generator), torch.randint(0, 3, (STEPS, 400), generator=generator)


def worker(rank: int, kind: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = make()
    watched: Any = nn.parallel.DistributedDataParallel(model) if kind != "fsdp" else shard(model)
    optimizer = torch.optim.SGD(watched.parameters(), lr=0.1)
    watching = kind != "rank 0 only" or rank == 0
    monitor = diagnostics.watch(watched, optimizer, f"{folder}/run", every=2, budget=1e9) if watching else None
    x, y = data()
    for step in range(STEPS):
        mine = slice(200 * rank, 200 * rank + 200)
        optimizer.zero_grad()
        loss = F.cross_entropy(watched(x[step, mine]), y[step, mine])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(watched.parameters(), 0.05)
        optimizer.step()
        if monitor:
            again = lambda step=step, mine=mine: F.cross_entropy(watched(x[step, mine]), y[step, mine])  # noqa: E731
            monitor.step(loss, again)
    if monitor:
        monitor.close()
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # interpreter teardown races with gloo's threads now and then (SIGABRT); everything is on disk by now


def shard(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def truth() -> tuple[list[float], list[list[float]], float]:
    """The same training in one process: whole norms before clipping, by tensor, and the share of dead units."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    whole, layers, awake = [], [], torch.zeros(16)
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x[step]), y[step]).backward()
        whole.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        layers.append([float(p.grad.norm()) for p in model.parameters()])
        optimizer.step()
        awake += (model[0](x[step]) > 0).sum(0)
    return whole, layers, float((awake == 0).float().mean())


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["ddp", "fsdp", pytest.param("rank 0 only", marks=pytest.mark.by_hand)])
def test_two_processes(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(worker, (kind, str(tmp_path)), nprocs=2, start_method="spawn")
    run = diagnostics.load(tmp_path / "run")
    whole, layers, dead = truth()
    scalars = run.table("scalars")
    assert list(scalars["step"]) == [1, 2, 3, 4]
    assert scalars["grad_norm_unclipped"].to_numpy() == pytest.approx(whole, rel=1e-4)
    assert scalars["grad_norm"].to_numpy() == pytest.approx([0.05] * STEPS, rel=1e-3)
    steps, _, norms = run.matrix("layers", "grad_norm")
    assert list(steps) == [1, 2, 4]
    assert norms[1] == pytest.approx(layers[1], rel=1e-4)
    units = run.table("units")
    if kind != "rank 0 only":
        assert list(units["dead_fraction"])[-1] == pytest.approx(dead)
    assert (len(run.table("curvature")) > 0) == (kind != "rank 0 only")  # alone, nobody would answer
    assert "measurement-failed" not in set(run.table("events")["kind"])
