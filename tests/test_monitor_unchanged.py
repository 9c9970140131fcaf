"""Watching never changes training: weights, buffers, optimizer state, gradients and random state, bit by bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

STEPS = 12


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4))


class Cnn(nn.Module):
    """Batch norm, a function as activation, an in-place one and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.out = nn.Dropout2d(0.2), nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.conv1(x.reshape(-1, 1, 8, 8))))
        x = self.drop(self.norm2(self.conv2(x))).relu_()
        return self.out(x.flatten(1))


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
}
MODELS = {"mlp": (mlp, 12), "cnn": (Cnn, 64)}


def train(
    make: Callable,
    features: int,
    optimizer_of: Callable,
    watched: Callable[[nn.Module, Any], Any] | None,
    closure: bool,
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = make()
    optimizer = optimizer_of(model.parameters())
    x, y = torch.randn(STEPS, 16, features), torch.randint(0, 4, (STEPS, 16))
    monitor = watched(model, optimizer) if watched else None
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[step]), y[step])
        loss.backward()
        optimizer.step()
        if monitor:
            again = lambda step=step: F.cross_entropy(model(x[step]), y[step])  # noqa: E731
            monitor.step(loss, again if closure else None)
            monitor.log(extra=1.0)
        if step % 5 == 4:  # an evaluation between steps
            model.eval()
            with torch.no_grad():
                model(x[0])
            model.train()
    if monitor:
        monitor.close()
    return state(model, optimizer)


def state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    return {
        "model": copy.deepcopy(model.state_dict()),
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "training": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
        "grad_enabled": torch.is_grad_enabled(),
        "hooks": hooks(model, optimizer),
    }


def hooks(model: nn.Module, optimizer: Any) -> int:
    """How many hooks are left, anywhere."""
    places = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    for module in model.modules():
        places += [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
    for parameter in model.parameters():
        places += [parameter._backward_hooks or (), parameter._post_accumulate_grad_hooks or ()]
    places += [nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks]
    return sum(map(len, places))


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{path}/{i}")
    else:
        assert a == b, path


@pytest.mark.parametrize("closure", [True, False], ids=["closure", "alone"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_training_is_bitwise_unchanged(model: str, optimizer: str, closure: bool, tmp_path: Any) -> None:
    make, features = MODELS[model]
    alone = train(make, features, OPTIMIZERS[optimizer], None, False)
    watched = train(
        make,
        features,
        OPTIMIZERS[optimizer],
        lambda m, o: diagnostics.watch(m, o, tmp_path / "run", every=2, curvature_every=3, budget=1e9),
        closure,
    )
    assert_same(alone, watched)
    run = diagnostics.load(tmp_path / "run")
    assert len(run.table("scalars")) == STEPS
    assert len(run.table("units")) > 0
    assert len(run.table("curvature")) == (5 if closure else 0)
    assert len(run.table("slices")) == (10 if closure else 0)  # along two directions
    assert set(run.table("events")["kind"]) <= {"no-closure", "curvature-note"}
