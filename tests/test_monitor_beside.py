"""Two networks that are trained beside each other know it; one that is frozen or an average is not trained."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks

import diagnostics

ANY = 100.0  # budget: every measurement that is due is made


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def update(optimizer: Optimizer, monitor: diagnostics.Monitor, loss: Callable[[], Tensor], closure: bool) -> None:
    value = loss()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    monitor.step(value.detach() if closure else value, loss if closure else None)


def beside(run_dir: Path) -> bool:
    return diagnostics.load(run_dir).meta["trained_beside"]


@pytest.mark.parametrize(
    ("frozen", "closure", "expected"),
    [(False, True, (True, True)), (True, True, (True, True)), (False, False, (True, True))],
    ids=["as it is", "frozen for the other's update", "no closure"],
)
def test_both_of_two_networks_against_each_other(frozen, closure, expected, tmp_path):
    torch.manual_seed(0)
    generator, critic = network(3, 2), network(2, 1)
    ours, theirs = SGD(generator.parameters(), 0.05), SGD(critic.parameters(), 0.05)
    with (
        diagnostics.watch(generator, ours, tmp_path / "generator", every=2, budget=ANY) as of_generator,
        diagnostics.watch(critic, theirs, tmp_path / "critic", every=2, budget=ANY) as of_critic,
    ):
        for _ in range(9):
            real, noise = torch.randn(16, 2) + 2, torch.randn(16, 3)
            fake = generator(noise).detach()
            update(
                theirs,
                of_critic,
                lambda real=real, fake=fake: (F.softplus(-critic(real)) + F.softplus(critic(fake))).mean(),
                closure,
            )
            critic.requires_grad_(not frozen)
            update(ours, of_generator, lambda noise=noise: F.softplus(-critic(generator(noise))).mean(), closure)
            critic.requires_grad_(True)
    assert (beside(tmp_path / "generator"), beside(tmp_path / "critic")) == expected
    assert not _global_optimizer_post_hooks


@pytest.mark.parametrize("kind", ["frozen network", "average of the weights", "same model", "same optimizer", "alone"])
def test_what_does_not_change_the_loss_by_itself(kind: str, tmp_path: Path) -> None:
    """Another optimizer that has other parts of the model is the user's way to train one network."""
    torch.manual_seed(0)
    model, other = network(3, 2), network(3, 2)
    target = copy.deepcopy(model) if kind == "average of the weights" else other
    parameters = [*model.parameters(), *(other.parameters() if kind == "same optimizer" else ())]
    second = SGD(model[2].parameters(), 0.05)
    optimizer = SGD(model[0].parameters() if kind == "same model" else parameters, 0.05)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2, budget=ANY) as monitor:
        for _ in range(9):
            x = torch.randn(16, 3)

            def loss(x: Tensor = x) -> Tensor:
                aim = x[:, :2] if kind in ("same model", "alone") else target(x)
                return F.mse_loss(model(x), aim if kind == "same optimizer" else aim.detach())

            update(optimizer, monitor, loss, closure=True)
            if kind == "same model":
                second.step()
            if kind == "average of the weights":
                with torch.no_grad():
                    for mean, now in zip(target.parameters(), model.parameters(), strict=True):
                        mean.lerp_(now, 0.1)
    assert not beside(tmp_path / "run")
    assert not _global_optimizer_post_hooks


def test_a_network_that_nobody_trains_hides_no_other(tmp_path: Path) -> None:
    """As the features that a perceptual loss compares, beside a critic that is frozen for the generator's update."""
    torch.manual_seed(0)
    generator, features, critic = network(3, 2), network(2, 4), network(2, 1)
    ours, theirs = SGD(generator.parameters(), 0.05), SGD(critic.parameters(), 0.05)

    def loss(noise: Tensor) -> Tensor:
        fake = generator(noise)
        return features(fake).square().mean() + F.softplus(-critic(fake)).mean()

    with diagnostics.watch(generator, ours, tmp_path, every=2, budget=ANY) as monitor:
        for _ in range(9):
            noise = torch.randn(16, 3)
            critic.requires_grad_(False)
            update(ours, monitor, lambda noise=noise: loss(noise), closure=True)
            critic.requires_grad_(True)
            theirs.step()
    assert beside(tmp_path)


def test_several_monitors_that_find_it_in_the_same_step(tmp_path: Path) -> None:
    """PyTorch goes through all hooks of a step: none may be removed on the way."""
    torch.manual_seed(0)
    generator, critic = network(3, 2), network(2, 1)
    ours, theirs = SGD(generator.parameters(), 0.05), SGD(critic.parameters(), 0.05)
    runs = [tmp_path / str(number) for number in range(3)]
    monitors = [diagnostics.watch(generator, ours, run, every=2, budget=ANY) for run in runs]
    for _ in range(5):
        loss = F.softplus(-critic(generator(torch.randn(16, 3)))).mean()
        loss.backward()
        ours.step()
        for monitor in monitors:
            monitor.step(loss)
        theirs.step()
    for monitor in monitors:
        monitor.close()
    assert [beside(run) for run in runs] == [True] * 3
    assert not _global_optimizer_post_hooks


class Both(nn.Module):
    """Maker and critic in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.critic = network(3, 2), network(2, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return self.critic(self.maker(noise))


@pytest.mark.parametrize("owned", [True, False], ids=["another optimizer has the critic", "none has"])
def test_both_networks_in_one_module(owned: bool, tmp_path: Path) -> None:
    """Of a Wasserstein critic the last bias gets a gradient of exactly 0: it is trained, and never changes. Passes that
    are made for the critic are no accumulation of the maker's."""
    torch.manual_seed(0)
    both = Both()
    ours, theirs = SGD(both.maker.parameters(), 0.05), SGD(both.critic.parameters() if owned else [Tensor([0])], 0.05)
    with diagnostics.watch(both, ours, tmp_path, every=1, budget=ANY) as monitor:
        for _ in range(9):
            for _ in range(9):
                both.zero_grad()
                (both(torch.randn(16, 3)).mean() - both.critic(torch.randn(16, 2) + 1).mean()).backward()
                theirs.step()
            noise = torch.randn(16, 3)
            update(ours, monitor, lambda noise=noise: -both(noise).mean(), closure=True)
    run = diagnostics.load(tmp_path)
    assert run.meta["optimized_elsewhere"] == [f"critic.{name}" for name, _ in both.critic.named_parameters()] * owned
    found = {each.cause for each in diagnostics.diagnose(run).alarms if each.kind == "wiring"}
    assert found == (set() if owned else {"not-in-optimizer", "accumulation-cut-short"})
    assert not _global_optimizer_post_hooks
