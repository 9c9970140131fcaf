"""A term of the loss that another outweighs at the weights they share, and terms that are as they are meant to be."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor import terms
from diagnostics.monitor.terms import Calls, Terms
from diagnostics.run import Run

ROWS = 64
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


class TwoHeads(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(8 if at == 0 else 16, 16), nn.Tanh()) for at in range(depth)]
        self.trunk, self.amount, self.kind = nn.Sequential(*layers), nn.Linear(16, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.amount(h).squeeze(1), self.kind(h)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The amount is of the first input, and the kind of how the signs of four others go together."""
    x = torch.randn(ROWS, 8, generator=generator)
    return x, x[:, 0], (x[:, 1] * x[:, 2] > 0).long() + (x[:, 3] * x[:, 4] > 0).long()


def train(path: Path, loss: Loss, updates: int = 400) -> Run:
    torch.manual_seed(0)
    model, generator = TwoHeads(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    measured = {"every": 1, "curvature_every": 0, "budget": 100.0}
    with diagnostics.watch(model, optimizer, path, **measured) as monitor:
        for _ in range(updates):
            data = batch(generator)
            optimizer.zero_grad()
            value = loss(model, *data)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda data=data: loss(model, *data))
    return diagnostics.load(path)


def both(weight: float) -> Loss:
    def loss(model: nn.Module, x: Tensor, amount: Tensor, kind: Tensor) -> Tensor:
        a, k = model(x)
        return weight * F.mse_loss(a, amount) + F.cross_entropy(k, kind)

    return loss


def in_hours(model: nn.Module, x: Tensor, amount: Tensor, kind: Tensor) -> Tensor:
    """As where targets are in a unit that makes them large, and the answers are scaled to it."""
    a, k = model(x)
    return F.mse_loss(300 * a, 300 * amount) + F.cross_entropy(k, kind)


def written(model: nn.Module, x: Tensor, amount: Tensor, kind: Tensor) -> Tensor:
    """By hand, and one loss an example."""
    a, k = model(x)
    return 1e5 * ((amount - a) ** 2).mean() + F.cross_entropy(k, kind, reduction="none").mean()


def of_random_labels(model: nn.Module, x: Tensor, amount: Tensor, kind: Tensor) -> Tensor:
    """There is nothing to learn of one term, which pulls as hard as the other."""
    a, k = model(x)
    return F.mse_loss(a, amount) + F.cross_entropy(k, (1000 * x[:, 5]).long() % 3)


def of_one_label(model: nn.Module, x: Tensor, amount: Tensor, kind: Tensor) -> Tensor:
    """As a discriminator that is also a classifier: what is real has one label, and no example differs by it."""
    a, k = model(x)
    return 300 * F.mse_loss(a, amount) + F.binary_cross_entropy_with_logits(k[:, 0], torch.ones(ROWS))


def told(run: Run) -> list[str]:
    return [each.cause or each.kind for each in diagnostics.diagnose(run).findings if each.alarm]


@pytest.mark.parametrize("loss", [both(1e5), in_hours, written])
def test_a_term_that_is_outweighed_is_told(tmp_path, loss):
    run = train(tmp_path, loss)
    assert told(run) == ["outweighed"]
    (finding,) = [each for each in diagnostics.diagnose(run).findings if each.cause == "outweighed"]
    assert "cross_entropy is outweighed" in finding.summary
    assert f"trained for {'squared error' if loss is written else 'mse_loss'}" in finding.summary


@pytest.mark.exhaustive
@pytest.mark.parametrize("loss", [both(1.0), both(0.1), of_random_labels, of_one_label])
def test_terms_of_one_scale_are_not(tmp_path, loss):
    run = train(tmp_path, loss, updates=300)
    assert "outweighed" not in told(run)


def test_terms_that_share_no_weights_are_not(tmp_path):
    def loss(model: nn.Module, x: Tensor, amount: Tensor, kind: Tensor) -> Tensor:
        h = model.trunk(x).detach()
        return 1e5 * F.mse_loss(model.amount(h).squeeze(1), amount) + F.cross_entropy(model.kind(h), kind)

    run = train(tmp_path, loss, updates=100)
    assert run.table("terms")["pull"].isna().all() and "outweighed" not in told(run)


def test_a_loss_of_one_term_has_no_table(tmp_path):
    run = train(tmp_path, lambda model, x, amount, kind: F.mse_loss(model(x)[0], amount), updates=30)
    assert run.table("terms").empty


def test_pulls_and_losses_are_those_of_autograd_term_by_term():
    torch.manual_seed(0)
    model = TwoHeads(1)
    x, amount, kind = batch(torch.Generator().manual_seed(2))
    with Calls() as calls:
        a, k = model(x)
        loss = 7 * F.mse_loss(a, amount) + 0.5 * F.cross_entropy(k, kind)
    names, columns = Terms().rows(loss, calls.seen, list(model.parameters()))

    def gradient(of: Callable[[], Tensor]) -> Tensor:
        model.zero_grad()
        of().backward()
        return torch.cat([each.grad.flatten() for each in model.trunk.parameters()])

    first = 7 * float(gradient(lambda: F.mse_loss(model(x)[0], amount)).norm())
    second = 0.5 * float(gradient(lambda: F.cross_entropy(model(x)[1], kind)).norm())
    assert names == ["mse_loss", "cross_entropy"]
    assert columns["pull"].tolist() == pytest.approx([first / second, second / first])
    a, k = (each.detach() for each in model(x))
    means = F.mse_loss(a.mean().expand(ROWS), amount), F.cross_entropy(k.mean(0).expand(ROWS, 3), kind)
    assert columns["mean_answer_loss"].tolist() == pytest.approx([float(each) for each in means])
    assert columns["loss"].tolist() == pytest.approx([float(F.mse_loss(a, amount)), float(F.cross_entropy(k, kind))])


def test_one_function_called_twice_is_numbered():
    model = TwoHeads(1)
    x, amount, _ = batch(torch.Generator().manual_seed(2))
    with Calls() as calls:
        a, k = model(x)
        loss = F.mse_loss(a, amount) + F.mse_loss(input=k[:, 0], target=amount) + F.mse_loss(k[:, 1], target=amount)
    assert Terms().rows(loss, calls.seen, list(model.parameters()))[0] == ["mse_loss#0", "mse_loss#1", "mse_loss#2"]


def _squared(answer: Tensor, target: Tensor) -> Tensor:
    off = target - answer
    return off * off


WRITTEN = {
    "power": (F.mse_loss, 1, lambda answer, target: ((answer - target) ** 2).mean()),
    "of halves": (F.mse_loss, 0.5, lambda answer, target: (0.5 * (answer - target) ** 2).mean()),
    "square": (F.mse_loss, 1, lambda answer, target: torch.mean(torch.square(torch.sub(target, answer)))),
    "product": (F.mse_loss, 1, lambda answer, target: _squared(answer, target).mean()),
    "sum of means": (F.mse_loss, 3, lambda answer, target: (answer - target).pow(2).mean(0).sum()),
    "absolute": (F.l1_loss, 1, lambda answer, target: (target - answer).abs().mean()),
    "each": (F.huber_loss, 1, lambda answer, target: F.huber_loss(answer, target, reduction="none").mean(1).mean()),
}


@pytest.mark.parametrize("function, factor, by_hand", WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_out_is_the_function(function, factor, by_hand):
    model = TwoHeads(1)
    x, amount, _ = batch(torch.Generator().manual_seed(2))
    target = torch.stack([amount, x[:, 1], x[:, 2]], 1)

    def columns(term: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        with Calls() as calls:
            a, k = model(x)
            loss = term(k, target) + F.mse_loss(a, amount)
        return Terms().rows(loss, calls.seen, list(model.parameters()))[1]

    ours, theirs = columns(by_hand), columns(lambda answer, target: factor * function(answer, target))
    assert ours["pull"].tolist() == pytest.approx(theirs["pull"].tolist())
    for column in ("loss", "mean_answer_loss"):
        assert ours[column].tolist() == pytest.approx((theirs[column] * torch.tensor([factor, 1])).tolist())


@pytest.mark.parametrize(
    "term",
    [
        lambda k, target: ((k - target) ** 3).mean(),
        lambda k, target: ((k - target) ** 2).exp().mean(),
        lambda k, target: ((k - k.detach().roll(1, 0) * k) ** 2).mean(),
        lambda k, target: ((k - torch.ones_like(k)) ** 2).mean(),
    ],
    ids=["cubed", "of the square", "two answers", "one target"],
)
def test_what_is_no_error_of_answers_is_no_term(term):
    model = TwoHeads(1)
    x, amount, _ = batch(torch.Generator().manual_seed(2))
    with Calls() as calls:
        a, k = model(x)
        _ = term(k, x[:, :3]) + F.mse_loss(a, amount)
    assert [each.error.name for each in calls.seen] == ["mse_loss"]


def test_no_more_is_held_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(terms, "HELD", 100)
    sizes = [each.numel() for each in terms._some([torch.zeros(n) for n in (60, 200, 30, 20, 10)])]
    assert sizes == [60, 30, 10]


def test_training_is_bitwise_unchanged(tmp_path):
    """With dropout, whose numbers are drawn, and a batch norm, which counts its batches."""

    def trained(path: Path | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, generator = TwoHeads(), torch.Generator().manual_seed(1)
        model.trunk.extend([nn.BatchNorm1d(16), nn.Dropout(0.5)])
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        monitor = diagnostics.watch(model, optimizer, path, every=1, budget=100.0) if path else None
        for _ in range(20):
            data = batch(generator)
            optimizer.zero_grad()
            value = both(1.0)(model, *data)
            value.backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(value, closure=lambda data=data: both(1.0)(model, *data))
        if monitor is not None:
            monitor.close()
        return model.state_dict()

    watched, alone = trained(tmp_path), trained(None)
    assert len(diagnostics.load(tmp_path).table("terms")) > 4
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


class Numbers(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def columns(generator: torch.Generator, units: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 8, generator=generator)
    y = torch.stack([2 * torch.sin(3 * x[:, 0]), x[:, 1] * x[:, 2], x[:, 3] * x[:, 4]], 1)
    return x, y * torch.tensor(units)


def squared(a: Tensor, y: Tensor) -> Tensor:
    return ((y - a) ** 2).mean()


def train_numbers(path: Path, units: tuple[float, ...], loss: Callable[[Tensor, Tensor], Tensor]) -> Run:
    torch.manual_seed(0)
    model, generator = Numbers(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with diagnostics.watch(model, optimizer, path, every=5, curvature_every=0, budget=100.0) as monitor:
        for _ in range(400):
            x, y = columns(generator, units)
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda x=x, y=y: loss(model(x), y))
    return diagnostics.load(path)


@pytest.mark.parametrize("loss", [F.mse_loss, squared])
def test_a_column_of_the_targets_in_a_unit_that_makes_it_small_is_told(tmp_path, loss):
    run = train_numbers(tmp_path, (100.0, 0.1, 0.1), loss)
    (finding,) = [each for each in diagnostics.diagnose(run).findings if each.cause == "outweighed"]
    assert finding.summary.startswith("Outputs 1, 2 (the first is 0) are outweighed: ")
    assert "trained for output 0" in finding.summary and "standardize each column" in finding.remedies[0]


@pytest.mark.exhaustive
@pytest.mark.parametrize("units", [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0)])
def test_columns_of_one_scale_and_one_that_is_always_zero_are_not(tmp_path, units):
    run = train_numbers(tmp_path, units, F.mse_loss)
    assert set(run.table("terms")["term"]) == {f"output {at}" for at, unit in enumerate(units) if unit}
    assert "outweighed" not in told(run)


def test_pulls_of_outputs_are_those_of_autograd_column_by_column():
    torch.manual_seed(0)
    model = Numbers(2)
    x = torch.randn(ROWS, 8)
    y = torch.randn(ROWS, 2) * torch.tensor([5.0, 1.0])
    with Calls() as calls:
        loss = F.mse_loss(model(x), y)
    names, table = Terms().rows(loss, calls.seen, list(model.parameters()))

    def length(at: int) -> float:
        model.zero_grad()
        (F.mse_loss(model(x)[:, at], y[:, at]) / 2).backward()
        return float(torch.cat([each.grad.flatten() for each in model.parameters()]).norm())

    assert names == ["output 0", "output 1"]
    assert table["pull"].tolist() == pytest.approx([length(0) / length(1), length(1) / length(0)], rel=1e-5)
    a = model(x).detach()
    assert table["loss"].tolist() == pytest.approx(((a - y) ** 2).mean(0).tolist())
    assert table["mean_answer_loss"].tolist() == pytest.approx(((a.mean(0) - y) ** 2).mean(0).tolist())


def test_labels_of_one_call_are_not_taken_apart():
    model = Numbers()
    with Calls() as calls:
        loss = F.binary_cross_entropy_with_logits(model(torch.randn(ROWS, 8)), (torch.randn(ROWS, 3) > 0).float())
    assert Terms().rows(loss, calls.seen, list(model.parameters())) == ([], {})
