"""The loss of the mean of the answers: against the same by hand, silent where answers are not compared with targets of
the data, and what runs are told by it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def data(count: int = 640) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=draw())
    return x, x[:, :2].tanh() + 0.1 * torch.randn(count, 2, generator=draw())


def train(run: Path, loss: Loss, model: nn.Module, x: Tensor, y: Tensor, epochs: int = 4, size: int = 16) -> Run:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with diagnostics.watch(model, optimizer, run, every=2, curvature_every=0, budget=ANY) as monitor:
        for _ in range(epochs):
            for i in torch.randperm(len(x)).split(size):
                optimizer.zero_grad()
                value = loss(model, x[i], y[i])
                value.backward()
                optimizer.step()
                monitor.step(value, closure=lambda i=i: loss(model, x[i], y[i]))
    return diagnostics.load(run)


def measured(run: Run) -> np.ndarray:
    return run.table("scalars", ["step", "answered_loss", "averaged_loss"]).dropna().to_numpy()


def network(outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs))


def distilled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = model(x)
    apart = F.kl_div(F.log_softmax(z / 4, 1), (3 * y / 4).softmax(1), reduction="batchmean")
    return 12 * apart + 0.1 * F.cross_entropy(z, y.argmax(1))


COMPARING: dict[str, Loss] = {
    "absolute": lambda model, x, y: F.l1_loss(model(x), y),
    "Huber": lambda model, x, y: F.huber_loss(model(x), y),
    "hinge": lambda model, x, y: F.relu(1 - model(x) * y.sign()).mean(),
    "distillation": distilled,
    "with a penalty": lambda model, x, y: (
        F.l1_loss(model(x), y) + 0.01 * sum(p.abs().sum() for p in model.parameters())
    ),
}


@pytest.mark.parametrize("name", COMPARING)
def test_it_is_the_loss_of_their_mean(name: str, tmp_path: Path) -> None:
    """By a model that gives it, at the weights after the last update that was looked at."""
    x, y = data(16)  # the same batch each time, in another order
    model = network()
    run = train(tmp_path / "run", COMPARING[name], model, x, y, epochs=18)
    steps, answered, averaged = measured(run).T
    assert len(steps) >= 3 and steps[-1] == 18

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x).mean(0, keepdim=True).expand(len(x), -1)

        def parameters(self, recurse: bool = True):  # of the penalty
            return model.parameters(recurse)

    assert answered[-1] == pytest.approx(COMPARING[name](model, x, y).item(), rel=1e-5)
    assert averaged[-1] == pytest.approx(COMPARING[name](Mean(), x, y).item(), rel=1e-5)


def game(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of a discriminator, whose targets are the same in every batch."""
    real = torch.tensor([1.0, -1.0]).repeat_interleave(len(x) // 2)
    return F.relu(1 - real[:, None] * model(x)).mean()


def contrast(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    left, right = F.normalize(model(torch.cat([x, x + 0.1]))).chunk(2)
    return F.cross_entropy(left @ right.T / 0.5, torch.arange(len(x))) + 0.0 * left.sum()


def physics(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope[:, 0] - y[:, 0]).abs().mean()


SILENT: dict[str, Loss] = {
    "a game": game,
    "a contrast within the batch": contrast,
    "derivatives by the inputs": physics,
    "a likelihood": lambda model, x, y: (model(x).pow(2) / 2 + 0.1 * model(x[:1]).abs()).sum(1).mean(),
    "one without a target": lambda model, x, y: model(x).abs().pow(1.5).mean(),
    "a policy": lambda model, x, y: -(model(x) * y).mean() + 0.01 * model[2].weight.pow(2).sum(),
    "two calls": lambda model, x, y: F.l1_loss(model(x), y) + 0.1 * model(x + 1).abs().mean(),
    "few, always": lambda model, x, y: F.l1_loss(model(x[:4]), y[:4]),
}


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_told_where_answers_are_not_compared_with_targets(name: str, tmp_path: Path) -> None:
    x, y = data(256)
    assert len(measured(train(tmp_path / "run", SILENT[name], network(), x, y, epochs=2))) == 0


def test_a_known_form_needs_it_not(tmp_path: Path) -> None:
    x, y = data()
    run = train(tmp_path / "run", lambda model, x, y: F.mse_loss(model(x), y), network(), x, y, epochs=2)
    assert len(measured(run)) == 0 and run.table("scalars", ["constant_loss"])["constant_loss"].notna().any()


class Encoders(nn.Module):
    """Of pictures and of what is said of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 8))
        self.right = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 8))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.left(x)), F.normalize(self.right(y))


def ranked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Each with its own more than with the others, by a margin."""
    left, right = model(x, y)
    scores = left @ right.t()
    return (0.25 + scores - scores.diag()[:, None]).clamp_min(0).fill_diagonal_(0).sum(1).mean()


@pytest.mark.exhaustive
@pytest.mark.parametrize("paired", [pytest.param(True, marks=pytest.mark.by_hand), False])
def test_pairs_that_do_not_belong_together(paired: bool, tmp_path: Path) -> None:
    """A contrast of the two outputs of one model; the loss of answers that are all one is all that it comes to."""
    torch.manual_seed(3)
    x = torch.randn(2048, 6)
    y = x[:, :2] + 0.1 * torch.randn(2048, 2)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return ranked(model, x, y if paired else y[y[:, 0].argsort()])  # as of captions sorted by length

    run = train(tmp_path / "run", loss, Encoders(), x, y, epochs=6 if paired else 10, size=32)
    averaged = measured(run)[:, 2]
    assert len(averaged) > 20 and averaged == pytest.approx(0.25 * 31, rel=1e-4)
    found = {finding.cause for finding in diagnostics.diagnose(run).findings if finding.alarm}
    assert found == (set() if paired else {"nothing-learned"})


def alike(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Two views are to agree, beside a term that nothing changes."""
    return (model(x) - model(x + 0.1)).square().mean() + 0.5


def varied(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    left, right = model(torch.cat([x, x + 0.1])).chunk(2)
    spread = sum((1 - (z.var(0) + 1e-4).sqrt()).clamp_min(0).mean() for z in (left, right))
    return (left - right).square().mean() + spread


def actor(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    policy, value = model(x, y)
    gained = y[:, 0] - value[:, 0].detach()
    return -(policy.log_softmax(1)[:, 0] * gained).mean() + (value[:, 0] - y[:, 0]).abs().mean()


@pytest.mark.parametrize(
    ("loss", "model", "told"),
    [(ranked, Encoders, True), (varied, network, True), (alike, network, False), (actor, Encoders, False)],
)
def test_which_losses_compare_answers_with_each_other(loss: Loss, model: Callable, told: bool, tmp_path: Path) -> None:
    x, y = data(512)
    run = train(tmp_path / "run", loss, model(), x, y, epochs=2)
    assert (len(measured(run)) > 3) == told
    assert not any(finding.alarm for finding in diagnostics.diagnose(run).findings)


@pytest.mark.every_case
@pytest.mark.parametrize("name", ["absolute", "distillation", "a game", "derivatives by the inputs", "two calls"])
def test_training_is_bitwise_unchanged(name: str, tmp_path: Path) -> None:
    loss = (COMPARING | SILENT)[name]
    x, y = data(128)

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 2))

    watched, alone = model(), model()
    train(tmp_path / "run", loss, watched, x, y)
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(alone.parameters(), 3e-3)
    for _ in range(4):
        for i in torch.randperm(len(x)).split(16):
            optimizer.zero_grad()
            loss(alone, x[i], y[i]).backward()
            optimizer.step()
    for (key, one), other in zip(watched.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["distillation", pytest.param("absolute", marks=pytest.mark.by_hand)])
@pytest.mark.parametrize("paired", [True, False])
def test_targets_of_other_examples(name: str, paired: bool, tmp_path: Path) -> None:
    x, y = data(2048)
    y = y if paired else y[torch.randperm(len(y), generator=draw())]
    run = train(tmp_path / "run", COMPARING[name], network(), x, y, epochs=2)
    found = {finding.cause: finding for finding in diagnostics.diagnose(run).findings if finding.alarm}
    assert set(found) == (set() if paired else {"nothing-learned"})
    if not paired:
        assert "the mean of its answers, given to every input" in found["nothing-learned"].summary
        assert "look at one batch" in found["nothing-learned"].remedies[0]


class TimeFirst(nn.Module):
    """As nn.GRU has it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.GRU(1, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(x.t()[..., None])[0])


class Members(nn.Module):
    """Of an ensemble, in the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members])


def levels(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of sequences, at each time, with noise."""
    z = model(y[:, :1] + 0.3 * x.repeat(1, 2))
    draw = torch.Generator().manual_seed(int(1e6 * x[0, 0].abs()))
    return (z - y[:, 0, None] - 0.5 * torch.randn(z.shape, generator=draw)).abs().mean()


def weighted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    weights = torch.poisson(torch.ones(4, len(x), 1), torch.Generator().manual_seed(int(1e6 * x[0, 0].abs())))
    return (weights * (model(x) - y[:, :1]).abs()).mean()


def below_zero(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return -F.cosine_similarity(model(x), y).mean()


def likelihood(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = model(x).chunk(2, 1)
    return F.gaussian_nll_loss(mean, 0.05 * y[:, :1], log_variance.exp())


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize(
    ("loss", "model"),
    [
        pytest.param(levels, TimeFirst, id="time first", marks=pytest.mark.by_hand),
        pytest.param(weighted, Members, id="members first"),
        pytest.param(below_zero, network, id="below zero", marks=pytest.mark.by_hand),
        pytest.param(likelihood, lambda: network(2), id="a likelihood"),
    ],
)
def test_what_is_learned_is_not_taken_for_nothing(loss: Loss, model: Callable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = data(2048)
    found = diagnostics.diagnose(train(tmp_path / "run", loss, model(), x, y, epochs=3)).findings
    assert not any(finding.cause == "nothing-learned" for finding in found)


def test_a_short_batch_is_left_out(tmp_path: Path) -> None:
    x, y = data(100)
    run = train(tmp_path / "run", COMPARING["absolute"], network(), x, y, epochs=8)  # each epoch ends with one of 4
    assert len(measured(run)) > 5
