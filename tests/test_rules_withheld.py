"""A part of the loss whose gradient never reaches the optimizer, beside loops that leave gradients out on purpose."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

ANY = 100.0  # budget: every measurement that is due is made


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
        self.first, self.second = nn.Linear(16, 1), nn.Linear(16, 1)
        self.spare = nn.Linear(16, 1)  # takes no part

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.trunk(x)
        return F.mse_loss(self.first(z), x[:, :1] - x[:, 1:2]), F.mse_loss(self.second(z), x[:, 2:3] * x[:, 3:])


def backward(kind: str, step: int, model: TwoTasks, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    first, second = model.losses(x)
    optimizer.zero_grad()
    if kind == "zeroed between":
        first.backward(retain_graph=True)
        optimizer.zero_grad()
        second.backward()
    elif kind == "part forgotten":
        second.backward()
    elif kind == "tasks in turns":
        (first if step % 2 else second).backward()
    else:
        (first + second).backward()
    if kind == "head held for some updates" and step < 5:
        model.first.weight.grad = model.first.bias.grad = None
    if kind == "removed after the step":
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("zeroed between", ("first.weight", "first.bias")),
        ("part forgotten", ("first.weight", "first.bias")),
        ("sum", ()),
        ("tasks in turns", ()),
        ("head held for some updates", ()),
        ("removed after the step", ()),
    ],
)
def test_a_gradient_that_the_loop_withholds(kind, layers, optimizer, tmp_path: Path):
    torch.manual_seed(0)
    model = TwoTasks()
    steps = optimizer(model.parameters(), lr=0.01)
    with diagnostics.watch(model, steps, tmp_path, every=2, budget=ANY) as monitor:
        for step in range(60):
            x = torch.randn(32, 4)
            backward(kind, step, model, steps, x)
            if kind != "removed after the step":
                steps.step()
            loss = sum(model.losses(x))
            monitor.step(loss.detach(), lambda x=x: sum(model.losses(x)))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert [(each.cause, each.layers) for each in found] == ([("gradient-withheld", layers)] if layers else [])
