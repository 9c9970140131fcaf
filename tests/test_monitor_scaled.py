"""Mixed precision as it is really written: unscale, clip, accumulate, overflow. Truths are read from the gradients."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

STEPS, MICRO, BAD = 8, 2, 4


def norm(model: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


@pytest.mark.parametrize("unscaled", [True, False], ids=["unscale and clip", "neither"])
@pytest.mark.parametrize("given", [True, False], ids=["scaler given", "scaler not given"])
@pytest.mark.parametrize("fused", [False, True], ids=["ordinary", "fused"])
def test_overflow_accumulation_and_clipping(fused: bool, given: bool, unscaled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)  # grows, and halves after an overflow
    whole, received, scales = [], [], []
    options = {"every": 3, "budget": 100.0, "scaler": scaler if given else None}
    with diagnostics.watch(model, optimizer, tmp_path / "run", **options) as monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
            total = 0.0
            for _ in range(MICRO):
                x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
                loss = F.cross_entropy(model(x), y) / MICRO
                scaler.scale(loss * math.inf if step == BAD else loss).backward()
                total += loss.item()
            if unscaled:
                scaler.unscale_(optimizer)
                whole.append(norm(model))
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                received.append(norm(model))
            else:
                whole.append(norm(model) / scales[-1])
                received.append(whole[-1])
            before = [p.detach().clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            skipped = all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
            assert skipped == (step == BAD)
            monitor.step(total)
    whole[BAD] = received[BAD] = math.nan
    run = diagnostics.load(tmp_path / "run")
    scalars, events = run.table("scalars"), run.table("events")
    assert scales[BAD] == 2 * scales[0] == 2 * scales[BAD + 1]
    assert list(scalars["grad_norm"]) == pytest.approx(received, rel=1e-4, nan_ok=True)
    good = [step for step in range(1, STEPS) if step != BAD]  # at the first step a scaler not given is not known yet
    unclipped = scalars["grad_norm_unclipped"].to_numpy()
    assert unclipped[good] == pytest.approx([whole[step] for step in good], rel=1e-4)
    assert scalars["update_norm"][BAD] == 0
    assert list(scalars["micro_batches"]) == [MICRO] * STEPS
    assert list(events["kind"]) == ["no-closure", "skipped-step"] and events["step"][1] == BAD + 1
    assert not diagnostics.diagnose(run).alarms


@pytest.mark.parametrize(("rate", "lost"), [(1.0, 0.0), (1e-4, 1.0), (2**-8, 0.5)])
def test_updates_that_rounding_takes_away(rate, lost, tmp_path):
    """Weights of 1 and of 1/4 with gradients of 1: neighbouring numbers of bfloat16 lie 2^-8 below 1 and 2^-10."""
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 0.25, 0.25, 0.0], dtype=torch.bfloat16))
    full = nn.Parameter(torch.ones(2))
    model = nn.Module()
    model.weight, model.full = weight, full
    optimizer = torch.optim.SGD(model.parameters(), lr=rate / 4)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=100.0) as monitor:
        optimizer.zero_grad()
        loss = (weight[:4].float().sum() + full.sum()).float()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    _, names, values = diagnostics.load(tmp_path / "run").matrix("layers", "lost_fraction")
    found = dict(zip(names, values[0], strict=True))
    assert found["weight"] == lost and found["full"] != found["full"]
