"""Targets of one class alone, and what looks like it: rare classes, and a contrast whose first is always right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.rules._one_class import one_class
from diagnostics.run import Run

pytestmark = pytest.mark.exhaustive
ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Contrast(nn.Module):
    """Returns scores of which the first is the right one, as momentum contrast does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        z, near, far = (F.normalize(self.embed(each), dim=1) for each in (x, x + 0.3 * x.roll(1, 1), x.roll(1, 0)))
        others = (z @ far.T).masked_fill(torch.eye(len(x)).roll(-1, 1).bool(), -1.0)
        return torch.cat([(z * near).sum(1, keepdim=True), others], 1) / 0.1


class Pairs(nn.Module):
    """The difference of two scores, which is to be positive."""

    def __init__(self) -> None:
        super().__init__()
        self.score = network(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x + torch.ones(4)) - self.score(x - torch.ones(4))


class Ranked(nn.Module):
    """Scores of eight candidates, of which the first is the right one."""

    def __init__(self) -> None:
        super().__init__()
        self.score = network(1)

    def forward(self, x: Tensor) -> Tensor:
        others = [x - torch.ones(4) * k for k in range(1, 8)]
        return self.score(torch.stack([x + torch.ones(4), *others], 1)).squeeze(2)


class Density(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_deviation = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean, self.log_deviation.exp()).log_prob(0.1 * x + 0.3)


def causes(run: Path, model: nn.Module, loss: Callable, target: Callable[[Tensor], Tensor]) -> set[str]:
    torch.manual_seed(1)
    x = torch.randn(2048, 4)
    t = target(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with diagnostics.watch(model, optimizer, run, every=5, curvature_every=0, budget=ANY) as monitor:
        for _ in range(6):
            for i in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                value = loss(model(x[i]), t[i])
                value.backward()
                optimizer.step()
                monitor.step(value)
    return {finding.cause or finding.kind for finding in diagnostics.diagnose(diagnostics.load(run)).findings}


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))


def none(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long)


def rare(x: Tensor) -> Tensor:
    return (x[:, 0] > 2.5).long()  # one in 160


def rarer(x: Tensor) -> Tensor:
    return (torch.arange(len(x)) % 1024 == 0).long()


def one(x: Tensor) -> Tensor:
    return torch.ones(len(x))


def column(label: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: label(x)[:, None].float()


@pytest.mark.parametrize(
    ("model", "loss", "target", "expected"),
    [
        pytest.param(lambda: network(3), F.cross_entropy, none, True, id="classes"),
        pytest.param(lambda: network(3), F.cross_entropy, rare, False, id="a rare class"),
        pytest.param(lambda: network(3), F.cross_entropy, rarer, False, id="a very rare class"),
        pytest.param(Pairs, F.binary_cross_entropy_with_logits, column(one), False, id="which of two is better"),
        pytest.param(Ranked, F.cross_entropy, none, False, id="which of eight is better"),
        pytest.param(Density, lambda y, t: -y.mean(), none, False, id="a density"),
        pytest.param(Contrast, F.cross_entropy, none, False, id="a contrast"),
        pytest.param(lambda: network(1), F.mse_loss, column(none), False, id="a residual"),
    ],
)
def test_targets_of_one_class(
    model: Callable[[], nn.Module],
    loss: Callable,
    target: Callable[[Tensor], Tensor],
    expected: bool,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    assert ("one-class" in causes(tmp_path / "run", model(), loss, target)) == expected


@pytest.mark.parametrize(("end", "rare", "told"), [(5e-3, 0.0, True), (5e-3, 0.1, False), (0.3, 0.0, False)])
def test_a_loss_on_its_way_down_is_enough_where_no_batch_stands_out(end: float, rare: float, told: bool) -> None:
    """A batch with an example of another class costs more than those about it."""
    steps = np.arange(1, 301)
    loss = 1.6 * end ** (steps / 300) * (1 + 0.02 * np.random.default_rng(0).standard_normal(300))
    loss[::40] += rare
    table = pd.DataFrame({"step": steps, "loss": loss, "one_class": np.where(steps % 100 == 0, 4.0, np.nan)})
    run = Run.from_frames({"name": "r", "layers": [{"name": "out.bias", "shape": [4]}]}, {"scalars": table})
    assert [each.cause for each in one_class(run)] == ["one-class"] * told
