"""Two gloo processes that accumulate: `no_sync` lets them start apart, and sharded rows lie on both.

The truth is the same training in one process, on whole batches.
"""

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import diagnostics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS, MICRO = 4, 3


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Linear(1, 3))  # one row is on one process
    with torch.no_grad():
        model[0].bias[:5] = -100  # five units that no input wakes: all on the first process, if sharded
    return model


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, MICRO, 40, 6, generator=generator), torch.randint(0, 3, (STEPS, MICRO, 40))


def worker(rank: int, kind: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(5)
    x, y = data()
    model = make()
    watched: Any = nn.parallel.DistributedDataParallel(model) if kind == "ddp" else shard(model)
    optimizer = torch.optim.SGD(watched.parameters(), lr=0.1)
    time.sleep(2.0 * rank)  # the other one is through its first backward passes before this one is watched
    mine = slice(20 * rank, 20 * rank + 20)
    with diagnostics.watch(watched, optimizer, f"{folder}/run", every=2, budget=1e9) as monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            for micro in range(MICRO):
                last = micro == MICRO - 1
                if kind == "fsdp":
                    watched.set_requires_gradient_sync(last)
                with watched.no_sync() if kind == "ddp" and not last else nullcontext():
                    loss = F.cross_entropy(watched(x[step, micro, mine]), y[step, micro, mine]) / MICRO
                    loss.backward()
            torch.nn.utils.clip_grad_norm_(watched.parameters(), 0.05)
            optimizer.step()
            monitor.step(loss)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # interpreter teardown races with gloo's threads now and then; everything is on disk by now


def shard(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def truth() -> tuple[list[float], list[list[float]]]:
    torch.manual_seed(5)
    x, y = data()
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms, silent = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(MICRO):
            (F.cross_entropy(model(x[step, micro]), y[step, micro]) / MICRO).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        rows = [
            (p.grad == 0).flatten(1).all(1).double().mean() if p.dim() > 1 else math.nan for p in model.parameters()
        ]
        silent.append([float(share) for share in rows])
        optimizer.step()
    return norms, silent


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.by_hand)])
def test_accumulation_in_two_processes(kind: str, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(worker, (kind, str(tmp_path)), nprocs=2, start_method="spawn")
    run = diagnostics.load(tmp_path / "run")
    norms, silent = truth()
    scalars = run.table("scalars")
    assert scalars["grad_norm_unclipped"].to_numpy() == pytest.approx(norms, rel=1e-4)
    assert scalars["grad_norm"].to_numpy() == pytest.approx([0.05] * STEPS, rel=1e-3)
    passes = [float(MICRO) if kind == "ddp" else math.nan] * STEPS  # FSDP2 shows the last pass only: not a number
    assert list(scalars["micro_batches"]) == pytest.approx(passes, nan_ok=True)
    steps, _, shares = run.matrix("layers", "silent_fraction")
    assert list(steps) == [1, 2, 4] and silent[0][0] == 5 / 16
    for row, step in enumerate(steps):
        assert shares[row].tolist() == pytest.approx(silent[step - 1], nan_ok=True)
