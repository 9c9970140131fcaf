"""A straight-through estimator whose detach is missing: who is told nothing through it, by autograd itself."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor.observe import Observer
from diagnostics.run import Run


class Quantized(nn.Module):
    """An encoder whose answer is replaced by the nearest entry of a codebook."""

    def __init__(self, through) -> None:
        super().__init__()
        self.encoder, self.codebook, self.decoder = nn.Linear(6, 4), nn.Embedding(16, 4), nn.Linear(4, 6)
        self.through = through

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        q = self.codebook(torch.cdist(z.detach(), self.codebook.weight.detach()).argmin(1))
        beside = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder(self.through(z, q)), beside


CANCELLED = {
    "z + (q - z)": lambda z, q: z + (q - z),
    "(q - z) + z": lambda z, q: torch.add(q - z, z),
    "z - (z - q)": lambda z, q: z - z.sub(q),
}
PASSED = {
    "detached": lambda z, q: z + (q - z).detach(),
    "the other way": lambda z, q: q + (z - z.detach()),
    "half of the way": lambda z, q: z + 0.5 * (q - z),
    "another sum": lambda z, q: z + (z - q),
    "both": lambda z, q: z + q,
}


@pytest.mark.parametrize(
    ("through", "cancels"), [(t, True) for t in CANCELLED.values()] + [(t, False) for t in PASSED.values()]
)
@pytest.mark.every_case
def test_who_is_told_nothing(through, cancels):
    torch.manual_seed(0)
    model, x = Quantized(through), torch.randn(8, 6)
    with Observer(model, asking=True) as observer:
        answer, _ = model(x)
    gradient = torch.autograd.grad(F.mse_loss(answer, x), list(model.encoder.parameters()), allow_unused=True)
    silent = all(each is None or float(each.abs().max()) < 1e-6 for each in gradient)
    assert silent == cancels
    assert observer.straight.lost == ({id(each) for each in model.encoder.parameters()} if cancels else set())
    assert not observer.failures


def test_a_step_towards_a_function_of_itself_loses_nothing():
    """As an iteration to a fixed point writes it: the way through the function is left."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    z = torch.randn(8, 4, requires_grad=True)
    with Observer(model, asking=True) as observer:
        h = model(z)
        h + (model(h) - h)
    assert observer.straight.lost == set()


def train(path: Path, through) -> Run:
    torch.manual_seed(0)
    model = Quantized(through)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with diagnostics.watch(model, optimizer, path, curvature_every=0, budget=100.0) as monitor:
        for _ in range(60):
            x = torch.randn(32, 6)

            def loss(x: Tensor = x) -> Tensor:
                answer, beside = model(x)
                return F.mse_loss(answer, x) + beside

            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, closure=loss)
    return diagnostics.load(path)


def test_it_is_told_with_the_layers_before(tmp_path):
    run = train(tmp_path, CANCELLED["z + (q - z)"])
    (finding,) = [each for each in diagnostics.diagnose(run).findings if each.cause == "straight-through"]
    assert finding.alarm and finding.layers == ("encoder.weight", "encoder.bias")
    assert "(q - z).detach()" in finding.remedies[0]


def test_nothing_is_told_of_one_with_its_detach(tmp_path):
    run = train(tmp_path, PASSED["detached"])
    assert "straight-through" not in [each.cause for each in diagnostics.diagnose(run).findings]
