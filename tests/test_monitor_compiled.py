"""Compiled models: no graph break, no recompilation, no changed bit, and the activations are seen all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Each case compiles in a process of its own: what is counted and cached is global.
SCRIPT = """
import sys, json, warnings
import torch, torch.nn.functional as F
from torch import nn
import diagnostics
from torch._dynamo.utils import counters

mode, closure, run_dir = sys.argv[1:]

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.3))
        self.out = nn.Linear(24, 4)
    def forward(self, x):
        return self.out(F.silu(self.body(x)))

x, y = torch.randn(21, 64, 12, generator=torch.Generator().manual_seed(1)), torch.arange(21 * 64).reshape(21, 64) % 4

def train(watched):
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = Network()
    first = model.body[0]
    with torch.no_grad():
        first.bias[:6] = -1000  # a quarter of the units is dead
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step_of, given, forward = optimizer.step, model, model
    if mode in ("compiled", "beside", "warm"):
        forward = torch.compile(model, fullgraph=True)
        given = forward if mode == "compiled" else model
    if mode == "warm":  # compiled before it is watched
        forward(x[0]).sum().backward()
    if mode in ("in place", "optimizer"):
        model.compile(fullgraph=True)
    if mode == "part":
        model.body = torch.compile(model.body)
    if mode == "optimizer":
        step_of = torch.compile(optimizer.step)
    loss_of = lambda step: F.cross_entropy(forward(x[step]), y[step])
    if mode == "whole loss":
        whole = torch.compile(lambda a, b: F.cross_entropy(model(a), b), fullgraph=True)
        loss_of = lambda step: whole(x[step], y[step])
    losses, norms, silent = [], [], []
    monitor = watched and diagnostics.watch(given, optimizer, run_dir, every=2, curvature_every=5, budget=1e9)
    for step in range(21):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        losses.append(loss.item())
        norms.append(sum(float(p.grad.double().square().sum()) for p in model.parameters()) ** 0.5)
        silent.append(float((first.weight.grad == 0).all(1).double().mean()))
        step_of()
        if monitor:
            monitor.step(loss, (lambda: loss_of(step)) if closure == "closure" else None)
    if monitor:
        monitor.close()
    truth = losses, norms, silent
    return model.state_dict(), truth, {k: dict(v) for k, v in counters.items() if k in ("stats", "graph_break")}

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    plain, _, expected = train(False)
    watched, truth, counted = train(True)
run = diagnostics.load(run_dir)
units, scalars = run.table("units"), run.table("scalars")
steps, names, shares = run.matrix("layers", "silent_fraction")
layer = next(i for i, name in enumerate(names) if name == "body.0.weight")
print(json.dumps({
    "same": all(torch.equal(plain[k], watched[k]) for k in plain), "truth": truth,
    "expected": expected["stats"], "counted": counted["stats"],
    "broken": [sorted(expected.get("graph_break", {})), sorted(counted.get("graph_break", {}))],
    "losses": list(scalars["loss"]), "norms": list(scalars["grad_norm"]),
    "silent": {int(s): float(row[layer]) for s, row in zip(steps, shares)},
    "units": sorted(set(units["layer"])), "events": sorted(set(run.table("events")["kind"])),
    "dead": units[units["layer"] == "body.1"]["dead_fraction"].dropna().tolist()[-1:],
    "curvature": len(run.table("curvature")),
    "doctor": str(diagnostics.doctor(torch.compile(Network()), torch.optim.SGD(Network().parameters(), 0.1))),
}))
"""

MODES = ("compiled", "beside", "warm", "in place", "part", "whole loss", "optimizer")
# Each takes ten seconds and more, this one half a minute.
IN_CI = {("compiled", "closure")}


def marks(case: tuple[str, str]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.exhaustive if case in IN_CI else pytest.mark.by_hand]


CASES = [
    pytest.param(mode, closure, marks=marks((mode, closure))) for mode in MODES for closure in ("closure", "alone")
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "closure"), CASES)
def test_compiled_training_is_untouched(mode: str, closure: str, tmp_path: Path) -> None:
    """As many graphs, and the same, as unwatched; inductor and dropout; no hook and no eager step in the training."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode, closure, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["same"]
    assert seen["counted"] == seen["expected"]
    if mode != "optimizer":  # torch itself breaks the graph of an optimizer
        assert seen["broken"] == [[], []]
    losses, norms, silent = seen["truth"]
    assert seen["losses"] == losses
    assert seen["norms"] == pytest.approx(norms, rel=1e-5)
    assert seen["silent"] == pytest.approx({step: silent[int(step) - 1] for step in seen["silent"]})
    assert len(seen["silent"]) == 11 and min(silent) >= 0.25  # without any hook
    assert "without a closure nothing is seen" in seen["doctor"]
    if closure == "alone":
        assert seen["units"] == [] and seen["curvature"] == 0 and seen["events"] == ["no-closure"]
    else:
        assert seen["units"] == ["body.1", "silu"] and seen["curvature"] == 5 and seen["events"] == []
        assert seen["dead"] == [0.25]
