"""Q-learning whose memory holds one array for the state and the next: told by what both networks are given."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor.observe import Observer

ROWS = 32


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def single(q: nn.Module, old: nn.Module, s: Tensor, after: Tensor, a: Tensor, r: Tensor) -> Tensor:
    with torch.no_grad():
        target = r + 0.9 * old(after).max(1).values
    return F.mse_loss(q(s).gather(1, a[:, None]).squeeze(1), target)


def double(q: nn.Module, old: nn.Module, s: Tensor, after: Tensor, a: Tensor, r: Tensor) -> Tensor:
    best = q(after).detach().argmax(1)
    rows = torch.arange(len(s))
    return F.smooth_l1_loss(q(s)[rows, a], r + 0.9 * old(after).detach()[rows, best])


def scaled(q: nn.Module, old: nn.Module, s: Tensor, after: Tensor, a: Tensor, r: Tensor) -> Tensor:
    old.requires_grad_(False)
    return F.mse_loss(q(s / 2).gather(1, a[:, None]), (r + 0.9 * old(after / 2).amax(1))[:, None])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(ROWS, 4), torch.randint(3, (ROWS,)), torch.randn(ROWS)


@pytest.mark.parametrize("loss", [single, double, scaled])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.every_case
def test_what_both_are_given(loss, same):
    q, (s, a, r) = net(), batch()
    with Observer(q, asking=True) as observer:
        loss(q, copy.deepcopy(q), s, s.clone() if same else s + 0.1 * torch.randn_like(s), a, r)
    assert observer.next_states.are_the_states() == same
    assert not observer.failures


def ratio(q: nn.Module, teacher: nn.Module, s: Tensor, a: Tensor) -> Tensor:
    new, old = (F.log_softmax(each(x), 1).gather(1, a[:, None]) for each, x in ((q, s), (teacher, s.clone())))
    return (new - old).exp().mean()


def taught(q: nn.Module, teacher: nn.Module, s: Tensor, a: Tensor) -> Tensor:
    return F.cross_entropy(q(s), teacher(s.clone()).argmax(1))


def one_tensor(q: nn.Module, teacher: nn.Module, s: Tensor, a: Tensor) -> Tensor:
    """As where no action leads anywhere."""
    return (q(s).gather(1, a[:, None]) - teacher(s).amax(1, keepdim=True)).square().mean()


@pytest.mark.parametrize("loss", [ratio, taught, one_tensor])
def test_another_network_that_is_given_the_same_is_something_else(loss):
    q, (s, a, _) = net(), batch()
    teacher = copy.deepcopy(q).requires_grad_(False)
    with Observer(q, asking=True) as observer:
        loss(q, teacher, s, a)
    assert not observer.next_states.are_the_states()
    assert not observer.failures


@pytest.mark.parametrize("copied", [True, False])
def test_it_is_told(copied, tmp_path):
    q = net()
    old, optimizer = copy.deepcopy(q), torch.optim.Adam(q.parameters(), 1e-3)
    with diagnostics.watch(q, optimizer, tmp_path, curvature_every=0) as monitor:
        for _ in range(30):
            s, a, r = batch()
            after = s + torch.randn_like(s) if copied else s.clone()

            def loss(s: Tensor = s, after: Tensor = after, a: Tensor = a, r: Tensor = r) -> Tensor:
                return single(q, old, s, after, a, r)

            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, closure=loss)
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.cause == "same-states"]
    assert [each.severity for each in found] == ["warning"] * (not copied)
