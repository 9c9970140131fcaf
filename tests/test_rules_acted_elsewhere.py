"""A policy that is given other states than its actions were chosen in: rollouts of an environment that writes its state
to one array, kept with and without a copy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import diagnostics

ENVS, STEPS = 8, 16


class Points:
    """Points that are pushed to the left or the right. `grid`: they stand on whole places, of which there are few."""

    def __init__(self, grid: bool) -> None:
        self.grid, self.state = grid, np.zeros((ENVS, 2), np.float32)
        self.random = np.random.default_rng(0)
        self.state[:] = self.random.integers(-1, 2, (ENVS, 2)) if grid else self.random.normal(size=(ENVS, 2))

    def step(self, action: np.ndarray) -> np.ndarray:
        self.state[:, 0] += np.where(action == 1, 1, -1) * (1 if self.grid else 0.1)
        self.state[:, 0] = self.state[:, 0].clip(-2, 2)
        return self.state


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> tuple[Categorical, Tensor]:
        return Categorical(logits=self.actor(x)), self.critic(x)[:, 0]


def rollout(policy: Policy, points: Points, kept, repeated: int) -> tuple[Tensor, ...]:
    """`repeated`: how many actions are drawn for each state."""
    states, actions, chances = [], [], []
    state = points.state
    for _ in range(STEPS):
        states.append(kept(state))
        x = states[-1].repeat_interleave(repeated, 0)
        with torch.no_grad():
            chosen = policy(x)[0]
            actions.append(chosen.sample())
            chances.append(chosen.log_prob(actions[-1]))
        state = points.step(actions[-1][::repeated].numpy())
    return torch.cat(states).repeat_interleave(repeated, 0), torch.cat(actions), torch.cat(chances)


def causes(path, kept=torch.tensor, grid: bool = False, repeated: int = 1) -> list[tuple[str, str]]:
    torch.manual_seed(0)
    policy, points = Policy(), Points(grid)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    with diagnostics.watch(policy, optimizer, path, every=2, curvature_every=0) as monitor:
        for _ in range(4):
            x, a, old = rollout(policy, points, kept, repeated)
            advantages = (a == 1).float() * 2 - 1
            for chosen in torch.randperm(len(x)).split(len(x) // 2):

                def loss_of(chosen=chosen, x=x, a=a, old=old, advantages=advantages) -> Tensor:
                    found, value = policy(x[chosen])
                    ratio = (found.log_prob(a[chosen]) - old[chosen]).exp()
                    gains = torch.minimum(ratio, ratio.clamp(0.8, 1.2)) * advantages[chosen]
                    return (value - advantages[chosen]).square().mean() - gains.mean()

                optimizer.zero_grad()
                loss = loss_of()
                loss.backward()
                optimizer.step()
                monitor.step(loss, closure=loss_of)
    findings = diagnostics.diagnose(diagnostics.load(path)).findings
    return [(each.cause, each.severity) for each in findings if each.cause == "acted-elsewhere"]


@pytest.mark.parametrize("kept", [torch.as_tensor, torch.from_numpy])
def test_states_that_are_written_over(kept, tmp_path):
    assert causes(tmp_path, kept) == [("acted-elsewhere", "warning")]


@pytest.mark.every_case
@pytest.mark.parametrize(
    "how",
    [{}, {"grid": True}, {"repeated": 4}, {"grid": True, "repeated": 4}],
    ids=lambda how: "-".join(how) or "plain",
)
def test_states_as_they_were(how, tmp_path):
    """That come again, as on a grid, or with several actions each: the same action had the same probability."""
    assert causes(tmp_path, **how) == []
