"""Losses that have no least value, each beside the one that was meant, and others below 0 that have one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

pytestmark = pytest.mark.exhaustive
ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def causes(run: Path, loss: Loss, model: nn.Module, rate: float = 3e-3, updates: int = 400, size: int = 32) -> set[str]:
    torch.manual_seed(1)
    x = torch.randn(2048, 4)
    y = (x[:, :1] + 0.3 * torch.randn(2048, 1)).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with diagnostics.watch(model, optimizer, run, every=5, curvature_every=0, budget=ANY) as monitor:
        for _ in range(updates):
            i = torch.randint(len(x), (size,)) if size < len(x) else torch.arange(len(x))
            optimizer.zero_grad()
            value = loss(model, x[i], y[i])
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda i=i: loss(model, x[i], y[i]))
    found = diagnostics.diagnose(diagnostics.load(run)).findings
    return {finding.cause or finding.kind for finding in found if finding.alarm}


def network(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, outputs))


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale, self.shift = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum()


def critic(penalty: float) -> Loss:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        fake = 2 + 0.5 * x.flip(0)
        between = ((x + fake) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
        return model(fake).mean() - model(x).mean() + penalty * (slope.norm(dim=1) - 1).square().mean()

    return loss


def classified(sign: float) -> Loss:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        score, label = model(x), (y > 0).long()
        return sign * score.gather(1, label).mean() if sign > 0 else F.cross_entropy(score, label[:, 0])

    return loss


def density(sign: float) -> Loss:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        z, log_determinant = model(x)
        return z.square().sum(1).mean() / 2 - sign * log_determinant

    return loss


def gaussian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of targets that are nearly exact: far below 0."""
    mean, log_deviation = model(x).chunk(2, 1)
    return ((0.02 * y + x[:, :1] - mean).square() / (2 * log_deviation.exp().square()) + log_deviation).mean()


@pytest.mark.parametrize(
    ("wrong", "right", "model"),
    [
        pytest.param(critic(0.0), critic(10.0), lambda: network(1), id="a critic's penalty"),
        pytest.param(classified(1.0), classified(-1.0), lambda: network(2), id="a minus that is missing"),
        pytest.param(density(-1.0), density(1.0), Flow, id="the sign of a log determinant"),
    ],
)
def test_a_loss_without_a_least_value(wrong: Loss, right: Loss, model: Callable, tmp_path: Path) -> None:
    rate = 1.0 if model is Flow else 3e-3
    assert "no-floor" in causes(tmp_path / "wrong", wrong, model(), rate)
    assert "no-floor" not in causes(tmp_path / "right", right, model(), rate)


@pytest.mark.parametrize("size", [32, 2048])
@pytest.mark.parametrize("rate", [3e-4, 3e-3])
def test_a_likelihood_far_below_zero_has_one(rate: float, size: int, tmp_path: Path) -> None:
    assert "no-floor" not in causes(tmp_path / "run", gaussian, network(2), rate, size=size)


def alike(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return -F.cosine_similarity(model(x), x[:, :2] + 0.1 * y).mean()


def information(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Donsker and Varadhan's bound, which starts at 0."""
    joint, apart = model(torch.cat([x[:, :3], y], 1)), model(torch.cat([x[:, :3], y.roll(1, 0)], 1))
    return apart.exp().mean().log() - joint.mean()


def reconstruction(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """With a deviation that is learned: a run that ends on its way down."""
    deviation = model[2].bias[4:].exp()
    return ((x - model(x)[:, :4]).square() / (2 * deviation.square()) + deviation.log()).sum(1).mean()


@pytest.mark.parametrize(
    ("loss", "outputs", "rate"),
    [
        pytest.param(alike, 2, 1e-4, id="a cosine"),
        pytest.param(information, 1, 1e-4, id="a bound of the information"),
        pytest.param(reconstruction, 8, 3e-3, id="a deviation that is learned"),
    ],
)
def test_a_run_that_ends_on_its_way_down(loss: Loss, outputs: int, rate: float, tmp_path: Path) -> None:
    assert "no-floor" not in causes(tmp_path / "run", loss, network(outputs), rate, size=256)


def test_a_score_that_stood_at_zero_at_first(tmp_path: Path) -> None:
    model = network(1)
    with torch.no_grad():
        model[2].weight.zero_()
    assert "no-floor" in causes(tmp_path / "run", lambda model, x, y: -100 * (model(x) * y.sign()).mean(), model)
