"""An entropy that is added to a policy's loss, in all the ways that it is written, beside losses that lower one on
purpose."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

import diagnostics

ANY = 100.0


def by_distribution(scores: Tensor, action: Tensor, gain: Tensor, sign: float) -> Tensor:
    drawn = Categorical(logits=scores)
    return -(drawn.log_prob(action) * gain).mean() + sign * 0.01 * drawn.entropy().mean()


def of_probabilities(scores: Tensor, action: Tensor, gain: Tensor, sign: float) -> Tensor:
    drawn = Categorical(probs=F.softmax(scores, -1))
    return -((drawn.log_prob(action) * gain).mean() - sign * 0.01 * drawn.entropy().mean())


def by_hand(scores: Tensor, action: Tensor, gain: Tensor, sign: float) -> Tensor:
    p = scores.softmax(-1)
    logs = torch.log(p + 1e-8)
    return -(logs.gather(1, action[:, None])[:, 0] * gain).mean() - sign * 0.01 * (p * logs).sum(1).mean()


def by_logarithms(scores: Tensor, action: Tensor, gain: Tensor, sign: float) -> Tensor:
    logs = F.log_softmax(scores, -1)
    entropy = -(logs.exp() * logs).sum(1)
    return (-logs[torch.arange(len(action)), action] * gain + sign * torch.tensor(0.01) * entropy).mean()


def clipped(scores: Tensor, action: Tensor, gain: Tensor, sign: float) -> Tensor:
    drawn = Categorical(logits=scores)
    ratio = (drawn.log_prob(action) - drawn.log_prob(action).detach()).exp()
    loss = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
    return loss + 0.01 * drawn.entropy().mean() if sign > 0 else loss - 0.01 * drawn.entropy().mean()


def sure_of_the_unlabelled(scores: Tensor, action: Tensor, gain: Tensor, sign: float) -> Tensor:
    """Grandvalet and Bengio 2005; examples may be weighed."""
    labelled = (F.cross_entropy(scores, action, reduction="none") * gain.abs()).mean()
    return labelled + 0.1 * Categorical(logits=scores).entropy().mean()


def soft(scores: Tensor, action: Tensor, gain: Tensor, sign: float) -> Tensor:
    """Of a discrete soft actor-critic: expected value and entropy in one."""
    logs = F.log_softmax(scores, -1)
    return (logs.exp() * (0.1 * logs - gain[:, None] * torch.arange(4.0))).sum(1).mean()


def causes(loss_of, folder, sign: float, maximize: bool = False) -> list[tuple[str | None, tuple[str, ...]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, maximize=maximize)
    with diagnostics.watch(model, optimizer, folder, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(4):
            x, action, gain = torch.randn(32, 3), torch.randint(4, (32,)), torch.randn(32)

            def loss_now(x=x, action=action, gain=gain) -> Tensor:
                return loss_of(model(x), action, gain, sign)

            optimizer.zero_grad()
            loss = loss_now()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=loss_now)
    found = diagnostics.diagnose(diagnostics.load(folder)).findings
    return [(each.cause, each.layers) for each in found if each.cause == "entropy-lowered"]


EACH = [by_distribution, of_probabilities, by_hand, by_logarithms, clipped]
ADDED, TAKEN_OFF = 1.0, -1.0


@pytest.mark.parametrize("loss_of", EACH)
@pytest.mark.every_case
def test_an_entropy_that_is_added(loss_of, tmp_path):
    assert causes(loss_of, tmp_path / "run", ADDED) == [("entropy-lowered", ("2.bias", "2.weight"))]


@pytest.mark.parametrize("loss_of", [*EACH, sure_of_the_unlabelled, soft])
@pytest.mark.every_case
def test_other_losses(loss_of, tmp_path):
    assert causes(loss_of, tmp_path / "run", TAKEN_OFF) == []


def test_a_return_that_is_to_grow(tmp_path):
    assert causes(by_distribution, tmp_path / "run", ADDED, maximize=True) == []
