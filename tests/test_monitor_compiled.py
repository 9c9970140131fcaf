"""Compiled models: no graph break, no recompilation, no changed bit, and the activations are seen all the same."""

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

mode, run_dir = sys.argv[1:]
x, y = torch.randn(21, 16, 12, generator=torch.Generator().manual_seed(1)), torch.arange(21 * 16).reshape(21, 16) % 4

def train(watched):
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4))
    compiled = torch.compile(model, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given = model if mode == "beside" else compiled
    monitor = watched and diagnostics.watch(given, optimizer, run_dir, every=2, curvature_every=5, budget=1e9)
    for step in range(21):
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(x[step]), y[step])
        loss.backward()
        optimizer.step()
        if monitor:
            closure = None if mode == "alone" else lambda: F.cross_entropy(compiled(x[step]), y[step])
            monitor.step(loss, closure)
    if monitor:
        monitor.close()
    return model.state_dict(), {k: dict(v) for k, v in counters.items() if k in ("stats", "graph_break")}

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    plain, expected = train(False)
    watched, counted = train(True)
run = diagnostics.load(run_dir)
units = run.table("units")
print(json.dumps({
    "same": all(torch.equal(plain[k], watched[k]) for k in plain),
    "expected": expected["stats"], "counted": counted["stats"], "breaks": counted.get("graph_break", {}),
    "units": sorted(set(units["layer"])), "events": sorted(set(run.table("events")["kind"])),
    "curvature": len(run.table("curvature")), "silent": int(run.table("layers")["silent_fraction"].notna().sum()),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["closure", "alone", "beside"])
def test_compiled_training_is_untouched(mode: str, tmp_path: Path) -> None:
    import json

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode, str(tmp_path / "run")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["same"]
    assert seen["counted"] == seen["expected"]
    assert seen["breaks"] == {}
    assert seen["silent"] > 0  # silent rows need no hook
    if mode == "alone":
        assert seen["units"] == [] and seen["curvature"] == 0
    else:
        assert seen["units"] == ["1"] and seen["curvature"] == 5
        assert seen["events"] == []
