"""A recurrence whose state is detached at every step, beside those that are cut less often, or train every step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

ANY, STEPS = 100.0, 6
BOTH = [True, pytest.param(False, marks=pytest.mark.exhaustive)]


class Reader(nn.Module):
    """`cut(t)`: whether the state is detached before step t. `each`: answers after every step; `own`: written out."""

    def __init__(self, cut, each: bool = False, own: bool = False) -> None:
        super().__init__()
        self.cut, self.each, self.own = cut, each, own
        self.cell = nn.Linear(3 + 8, 8) if own else nn.GRUCell(3, 8)
        self.out = nn.Linear(8, 2)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.cell(torch.cat([x, h], 1))) if self.own else self.cell(x, h)

    def forward(self, x: Tensor) -> Tensor:
        h, answers = x.new_zeros(len(x), 8), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h.detach() if self.cut(t) else h)
            answers.append(self.out(h))
        return torch.stack(answers).mean(0) if self.each else answers[-1]


class Refined(Reader):
    """An answer that is detached and given back, beside a state that is not."""

    def forward(self, x: Tensor) -> Tensor:
        h, answer = x.new_zeros(len(x), 8), x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t] + answer.detach(), h)
            answer = F.pad(self.out(h), (0, 1))
        return answer[:, :2]


class FixedPoint(Reader):
    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        with torch.no_grad():
            for _ in range(STEPS):
                h = self.cell(x[:, 0], h)
        return self.out(self.cell(x[:, 0], h))


def always(t: int) -> bool:
    return True


def findings(model: nn.Module, folder, loss_of, beside: tuple = (), closure: bool = True) -> list:
    """`loss_of(x, y)`, of sequences and what their first number says; `beside`: what is trained with the model."""
    optimizer = torch.optim.Adam([*model.parameters(), *beside], 1e-3)
    with diagnostics.watch(model, optimizer, folder, budget=ANY) as monitor:
        for _ in range(12):
            x = torch.randn(16, STEPS, 3)
            y = (x[:, 0, 0] > 0).long()
            optimizer.zero_grad()
            loss = loss_of(x, y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=(lambda x=x, y=y: loss_of(x, y)) if closure else None)
    return list(diagnostics.diagnose(diagnostics.load(folder)).findings)


def causes(model: nn.Module, folder, closure: bool = True) -> list[tuple[str | None, tuple[str, ...]]]:
    torch.manual_seed(0)
    found = findings(model, folder, lambda x, y: F.cross_entropy(model(x), y), closure=closure)
    return [(each.cause, each.layers) for each in found if each.kind == "wiring"]


@pytest.mark.parametrize("closure", BOTH)
@pytest.mark.parametrize("own", BOTH)
def test_a_state_that_is_detached_at_every_step(tmp_path, own, closure):
    ((cause, layers),) = causes(Reader(always, own=own), tmp_path, closure)
    assert cause == "state-cut"
    assert set(layers) == {name for name, _ in Reader(always, own=own).named_parameters() if name.startswith("cell")}


@pytest.mark.exhaustive
@pytest.mark.parametrize("closure", BOTH)
@pytest.mark.parametrize(
    "model",
    [
        Reader(lambda t: False),
        Reader(lambda t: t % 3 == 0),  # truncated
        Reader(always, each=True),  # every step has an answer of its own
        Refined(always),
        FixedPoint(always),
    ],
    ids=["whole", "truncated", "each", "refined", "fixed point"],
)
def test_what_is_cut_less_or_on_purpose(tmp_path, model, closure):
    assert causes(model, tmp_path, closure) == []


@pytest.mark.parametrize("cut", BOTH)
def test_a_loop_around_the_model(tmp_path, cut):
    """The model is one step; each has a loss of its own."""
    torch.manual_seed(0)
    model, head = nn.GRUCell(3, 8), nn.Linear(8, 2)

    def loss_of(x, y):
        h, losses = torch.zeros(16, 8), []
        for t in range(STEPS):
            h = model(x[:, t], h.detach() if cut else h)
            losses.append(F.cross_entropy(head(h), y))
        return torch.stack(losses).mean()

    found = findings(model, tmp_path, loss_of, tuple(head.parameters()))
    assert "state-cut" not in {each.cause for each in found}


def test_a_model_that_is_stepped_forward_on_its_own_answers(tmp_path):
    """One step is trained, from where the model's own steps lead: the answers before it are constants on purpose."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))

    def loss_of(x, _):
        answer = start = x[:, 0]
        for _ in range(STEPS):
            answer = model(answer.detach())
        return F.mse_loss(answer, 0.5**STEPS * start)

    found = findings(model, tmp_path, loss_of)
    assert "state-cut" not in {each.cause for each in found}
