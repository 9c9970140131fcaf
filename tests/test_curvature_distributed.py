"""Two gloo processes measure what one process measures on the whole batch; an error on one is an error on both."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics.curvature import CurvatureError, combine, follow, measure

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def make() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    generator = torch.Generator().manual_seed(1)
    return model, torch.randn(40, 8, generator=generator), torch.randint(0, 4, (40,), generator=generator)


def numbers(model: nn.Module, closure, failing=None) -> dict:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    estimate = measure(closure, model, optimizer_after(optimizer, closure), [1e-2], tolerance=1e-3)
    row = combine([follow(closure, model, estimate)] * 2, estimate)
    kept = {"eigenvalues", "smallest", "preconditioned", "stability", "trace", "gradient_alignment", "method"}
    found = {name: value for name, value in estimate.record().items() if name in kept}
    failure = None
    if failing is not None:
        try:
            measure(failing, model, optimizer, [1e-2])
        except CurvatureError as error:
            failure = str(error)
    changed = any(not torch.equal(a, p.detach()) for a, p in zip(before, model.parameters(), strict=True))
    return {
        **found,
        "largest": row["largest"],
        "square": row["gradient_square"],
        "failure": failure,
        "changed": changed,
    }


def optimizer_after(optimizer: torch.optim.Optimizer, closure) -> torch.optim.Optimizer:
    """Adam's state as after a step, without moving the weights."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.tensor(10.0),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.ones_like(p) * 0.04,
            }
    return optimizer


def worker(rank: int, kind: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, x, y = make()
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        wrapped: nn.Module = model
    else:
        wrapped = nn.parallel.DistributedDataParallel(model)
    mine = slice(20 * rank, 20 * rank + 20)

    def closure() -> Tensor:
        return F.cross_entropy(wrapped(x[mine]), y[mine])

    def failing() -> Tensor:
        if rank == 1:
            raise ValueError("this process has no batch")
        return closure()

    found = numbers(wrapped, closure, failing if kind == "ddp" else None)
    if kind == "ddp":  # the wrapper still trains
        loss = closure()
        loss.backward()
        found["gradient"] = float(sum(p.grad.square().sum() for p in model.parameters()))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads race with the interpreter's end


def run(kind: str, folder: Path) -> list[dict]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, kind, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            pytest.fail("a process waits for ever")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.exhaustive)])
def test_two_processes_measure_the_global_batch(kind: str, tmp_path: Path):
    model, x, y = make()
    single = numbers(model, lambda: F.cross_entropy(model(x), y))
    both = run(kind, tmp_path)
    assert both[0]["eigenvalues"] == both[1]["eigenvalues"]
    exact = kind == "ddp"
    for found in both:
        assert found["method"] == ("double backward" if exact else "differences")
        assert found["eigenvalues"] == pytest.approx(single["eigenvalues"], rel=2e-3 if exact else 1e-2)
        for name in ("smallest", "preconditioned", "stability", "gradient_alignment", "largest", "square"):
            assert found[name] == pytest.approx(single[name], rel=1e-2 if exact else 3e-2, abs=1e-4), name
        assert not found["changed"]


@pytest.mark.exhaustive
def test_an_error_on_one_process_is_an_error_on_both(tmp_path: Path):
    both = run("ddp", tmp_path)
    assert "no batch" in both[1]["failure"]
    assert "1 of 2 processes failed" in both[0]["failure"]
    assert both[0]["gradient"] == both[1]["gradient"]
