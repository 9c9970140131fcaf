"""An advantage through which the policy's term trains the critic, beside losses that are built much alike."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

import diagnostics

ANY = 100.0


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 16)
        self.policy, self.value = nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.trunk(x))
        return self.policy(h), self.value(h).squeeze(-1)


def joint(model: nn.Module, x: Tensor, action: Tensor, result: Tensor, cut: bool) -> Tensor:
    logits, value = model(x)
    advantage = result - (value.detach() if cut else value)
    policy = -(Categorical(logits=logits).log_prob(action) * advantage).mean()
    return policy + 0.5 * F.mse_loss(value, result)


def temporal_difference(model: nn.Module, x: Tensor, action: Tensor, result: Tensor, cut: bool) -> Tensor:
    logits, value = model(x)
    delta = result + 0.9 * model(x + 0.1)[1].detach() - value
    scores = F.log_softmax(logits, -1).gather(1, action[:, None]).squeeze(1)
    return (-scores * (delta.detach() if cut else delta)).sum() + delta.pow(2).sum()


def in_lists(model: nn.Module, x: Tensor, action: Tensor, result: Tensor, cut: bool) -> Tensor:
    """As in PyTorch's own example."""
    policies, values = [], []
    for state, chosen, gain in zip(x[:8], action, result, strict=False):
        logits, value = model(state)
        policies.append(-Categorical(logits=logits).log_prob(chosen) * (gain - (value.item() if cut else value)))
        values.append(F.smooth_l1_loss(value, gain))
    return torch.stack(policies).sum() + torch.stack(values).sum()


def clipped(model: nn.Module, x: Tensor, action: Tensor, result: Tensor, cut: bool) -> Tensor:
    """PPO, with advantages of mean 0 and deviation 1, and an entropy."""
    logits, value = model(x)
    advantage = result - (value.detach() if cut else value)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    drawn = Categorical(logits=logits)
    ratio = (drawn.log_prob(action) - drawn.log_prob(action).detach()).exp()
    surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    return -surrogate + 0.5 * (result - value).pow(2).mean() - 0.01 * drawn.entropy().mean()


def of_two_networks(model: nn.Module, x: Tensor, action: Tensor, result: Tensor, cut: bool) -> Tensor:
    """Without a critic's own term, as where it is trained by another optimizer."""
    logits, value = model(x)
    return -(Categorical(logits=logits).log_prob(action) * (result - value)).mean()


def uncertain(model: nn.Module, x: Tensor, action: Tensor, result: Tensor, cut: bool) -> Tensor:
    """A mixture's likelihood and an error of its mean: a value that is compared, beside logarithms."""
    logits, value = model(x)
    each = Normal(torch.arange(4.0), 1.0).log_prob(result[:, None] - value[:, None])
    return -(torch.log_softmax(logits, -1) + each).logsumexp(-1).mean() + (result - value).abs().mean()


def expected(model: nn.Module, x: Tensor, action: Tensor, result: Tensor, cut: bool) -> Tensor:
    """An entropy weighed by probabilities, and the value's error by a weight that is learned."""
    logits, value = model(x)
    p = logits.softmax(-1)
    weight = model.policy.bias.mean()
    return (p * p.log()).sum(-1).mean() + ((result - value).pow(2) * torch.exp(-weight)).mean() + weight


def causes(loss_of, folder, cut: bool) -> list[tuple[str | None, tuple[str, ...]]]:
    torch.manual_seed(0)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with diagnostics.watch(model, optimizer, folder, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(8):
            x = torch.randn(32, 3)
            action, result = torch.randint(4, (32,)), x[:, 0] + torch.randn(32)
            loss = loss_of(model, x, action, result, cut)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    found = diagnostics.diagnose(diagnostics.load(folder)).findings
    return [(each.cause, each.layers) for each in found if each.cause == "advantage-trained"]


EACH = [joint, temporal_difference, in_lists, clipped]


@pytest.mark.parametrize("loss_of", EACH)
@pytest.mark.every_case
def test_a_policy_that_trains_its_critic_is_told(loss_of, tmp_path):
    assert causes(loss_of, tmp_path / "run", cut=False) == [("advantage-trained", ("value.bias", "value.weight"))]


@pytest.mark.parametrize("loss_of", [*EACH, of_two_networks, uncertain, expected])
@pytest.mark.every_case
def test_other_losses_are_not(loss_of, tmp_path):
    assert causes(loss_of, tmp_path / "run", cut=True) == []
