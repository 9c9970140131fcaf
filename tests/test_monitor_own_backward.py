"""Functions with a backward of their own, right ones and others. The oracle is calculus."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor import own_backward

Forward, Backward = Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]


def written(forward: Forward, backward: Backward) -> Callable[[Tensor], Tensor]:
    class Written(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return backward(*ctx.saved_tensors, gradient)

    return Written.apply


CASES: dict[str, tuple[Forward, Backward, float | None]] = {  # and the ratio, where the two do not belong together
    "square": (lambda x: x * x, lambda x, g: 2 * x * g, None),
    "half of its derivative": (lambda x: x * x, lambda x, g: x * g, 2.0),
    "a forgotten factor": (lambda x: -2 * x, lambda x, g: g.clone(), -2.0),
    "a factor": (lambda x: -2 * x, lambda x, g: -2 * g, None),
    "another sign": (F.softplus, lambda x, g: -g * x.sigmoid(), -1.0),
    "reversal": (lambda x: x.clone(), lambda x, g: -g, None),
    "scaled on purpose": (lambda x: x.clone(), lambda x, g: 0.1 * g, None),
    "straight through a rounding": (torch.round, lambda x, g: g.clone(), None),
    "straight through a sign": (torch.sign, lambda x, g: g * (x.abs() < 1), None),
    "straight through bounds": (lambda x: x.clamp(-0.5, 0.5), lambda x, g: g.clone(), None),
    "a spike's surrogate": (lambda x: (x > 0).float(), lambda x, g: g / (1 + 10 * x.abs()) ** 2, None),
}


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(5, 20), nn.Linear(20, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 5, generator=generator)
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize("name", CASES)
def test_whether_a_backward_is_the_derivative(name: str) -> None:
    forward, backward, ratio = CASES[name]
    (x, y), model = data(), Model(written(forward, backward))
    told = own_backward.told(model, lambda: F.cross_entropy(model(x), y))
    assert bool(told) == (ratio is not None)
    assert all(parameter.grad is None for parameter in model.parameters())
    if ratio is not None:
        assert told["wrong_backward"] == [["Written"], pytest.approx(ratio, rel=0.01)]


@pytest.mark.parametrize("name", ["a factor", "a forgotten factor"])
def test_a_wrong_backward_is_named(name: str, tmp_path: Path) -> None:
    """Behind it the weights go uphill; those of the last layer are held."""
    forward, backward, ratio = CASES[name]
    (x, y), model = data(), Model(written(forward, backward))
    model.b.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=100.0) as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda: F.cross_entropy(model(x), y))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert [(each.cause, each.severity) for each in found] == [("wrong-backward", "critical")] * (ratio is not None)
