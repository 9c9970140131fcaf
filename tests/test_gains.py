"""Gains of optimizers that are not in the table: against their own steps at the same weights and state."""

import copy

import pytest
import torch
from torch import Tensor, nn, optim

import diagnostics
from diagnostics.curvature.errors import CurvatureError
from diagnostics.curvature.gains import measured_terms


def trained(make, dtype=torch.float64, size: float = 1.0, steps: int = 12) -> tuple[optim.Optimizer, list[Tensor]]:
    """After some steps of gradients of this size on two tensors of very different length; and the last gradients."""
    torch.manual_seed(0)
    weights = [nn.Parameter(3 * torch.randn(6, 5, dtype=dtype)), nn.Parameter(0.1 * torch.randn(5, dtype=dtype))]
    optimizer = make(weights)
    for _ in range(steps):
        for p in weights:
            p.grad = size * (1 + 0.3 * torch.randn_like(p)) * torch.linspace(0.5, 2, 5, dtype=dtype)
        optimizer.step()
    return optimizer, [p.grad.clone() for p in weights]


def responses(optimizer: optim.Optimizer, gradients: list[Tensor]) -> list[Tensor]:
    rates = [group["lr"] for group in optimizer.param_groups]
    terms = measured_terms(optimizer, rates, gradients)
    return [torch.as_tensor(t.response).expand_as(g) for t, g in zip(terms, gradients, strict=True)]


def half_step(optimizer: optim.Optimizer, gradients: list[Tensor], share: float) -> list[Tensor]:
    """Half of what one step answers to a unit of gradient, by +- a share of it: R where nothing is averaged."""
    ends = []
    for sign in (1, -1):
        stepped = copy.deepcopy(optimizer)
        for p, g in zip(stepped.param_groups[0]["params"], gradients, strict=True):
            p.grad = sign * share * g
        stepped.step()
        ends.append([p.detach() for p in stepped.param_groups[0]["params"]])
    return [(b - a) / (4 * share * g) for a, b, g in zip(*ends, gradients, strict=True)]


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_adafactor_steps_by_the_size_of_each_tensor(decay: float):
    optimizer, gradients = trained(lambda p: optim.Adafactor(p, lr=0.05, weight_decay=decay))
    found = responses(optimizer, gradients)
    for mine, true in zip(found, half_step(optimizer, gradients, 1e-3), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=0)
    assert float(found[0].mean()) > 10 * float(found[1].mean())


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_adafactor_in_float32_has_the_epsilon_of_float32(size: float):
    """It stands in for second moments that are smaller than 1e-7."""
    optimizer, gradients = trained(lambda p: optim.Adafactor(p, lr=0.2, d=1e3), torch.float32, size)
    for mine, true in zip(responses(optimizer, gradients), half_step(optimizer, gradients, 0.03), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, true, rtol=2e-2, atol=0)


class OwnSGD(optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


class Pulled(optim.SGD):
    """Heavy ball that draws the weights to zero, under a name of its own."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                p.sub_(velocity.mul_(0.9).add_(p.grad).add_(p, alpha=group.get("pull", 0.0)), alpha=group["lr"])


class OwnAdam(optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    "make",
    [
        lambda p, **k: OwnSGD(p, lr=0.1, momentum=0.9, **k),
        lambda p, **k: OwnAdam(p, lr=1e-2, **k),
        lambda p, **k: OwnAdam(p, lr=1e-2, decoupled_weight_decay=True, **k),
        lambda p, **k: Pulled(p),
    ],
    ids=["heavy ball", "Adam", "AdamW", "by another name"],
)
def test_weight_decay_has_no_part_in_the_gain(make):
    """Of the same state: what is left out is what the weights lose without a gradient."""
    optimizer, gradients = trained(make)
    free = responses(optimizer, gradients)
    optimizer.param_groups[0]["weight_decay"] = optimizer.param_groups[0]["pull"] = 0.02
    for mine, other in zip(responses(optimizer, gradients), free, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=0)


def test_a_gradient_clipped_before_the_step_is_what_an_adaptive_optimizer_got():
    optimizer, gradients = trained(lambda p: OwnAdam(p, lr=1e-2, betas=(0.9, 0.95)), size=0.01)
    free = responses(optimizer, gradients)
    for mine, other in zip(responses(optimizer, [100 * g for g in gradients]), free, strict=True):
        torch.testing.assert_close(mine, other, rtol=5e-2, atol=0)


class Base(optim.Optimizer):
    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.direction(p, self.state[p]), alpha=group["lr"])


class LARS(Base):
    def direction(self, p, state):
        return p.grad * p.norm() / p.grad.norm()


class ClippedLARS(Base):
    """Never a longer step than that of the gradient itself, as common libraries have it."""

    def direction(self, p, state):
        return p.grad * (0.01 * p.norm() / p.grad.norm()).clamp(max=1)


class LAMB(Base):
    def direction(self, p, state):
        state["t"] = state.get("t", 0) + 1
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * p.grad
        state["v"] = 0.999 * state.get("v", 0) + 0.001 * p.grad.square()
        step = state["m"] / (1 - 0.9 ** state["t"]) / ((state["v"] / (1 - 0.999 ** state["t"])).sqrt() + 1e-6)
        return step * p.norm() / step.norm()


class Centred(Base):
    """Gradient centralization."""

    def direction(self, p, state):
        return p.grad - p.grad.mean(-1, keepdim=True)


class Clipped(Base):
    """Adaptive gradient clipping."""

    def direction(self, p, state):
        return p.grad * (0.01 * p.norm() / p.grad.norm()).clamp(max=1)


@pytest.mark.parametrize("kind", [LARS, ClippedLARS, LAMB, Centred, Clipped])
def test_what_is_no_gain_of_each_coordinate_is_refused_by_its_reason(kind):
    optimizer, gradients = trained(kind)
    with pytest.raises(CurvatureError, match="not proportional to"):
        responses(optimizer, gradients)


class Nesterov(Base):
    """`sign`: of the momentum beside the gradient. With the wrong one an alternating gradient is still gone against."""

    sign = 1.0

    def direction(self, p, state):
        velocity = state.setdefault("velocity", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
        return p.grad + self.sign * 0.9 * velocity


class Uphill(Nesterov):
    sign = -1.0


def test_what_goes_up_a_constant_gradient_has_no_stable_rate():
    optimizer, gradients = trained(Nesterov)
    for response in responses(optimizer, gradients):  # half of rate times gain: an alternating velocity is g / 1.9
        torch.testing.assert_close(response, torch.full_like(response, 0.1 * (1 + 0.9 / 1.9) / 2), rtol=1e-6, atol=0)
    with pytest.raises(CurvatureError, match="no rate of it is stable"):
        responses(*trained(Uphill))


def test_a_watched_run_with_adafactor_has_the_ratio_of_its_next_step(tmp_path):
    """Least squares, whose Hessian is written out, in the metric of a step of the optimizer itself."""
    torch.manual_seed(0)
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    optimizer, true = optim.Adafactor(model.parameters(), lr=0.05), []
    with diagnostics.watch(model, optimizer, tmp_path, every=1, curvature_every=1, budget=1e9) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            half = half_step(optimizer, [torch.full((1, 4), 1e-6, dtype=torch.float64)], 1.0)[0].flatten()
            hessian = 2 * x.T @ x / 50
            true.append(float(torch.linalg.eigvalsh(half.sqrt()[:, None] * hessian * half.sqrt())[-1]))
            monitor.step(loss, closure=lambda: (model(x) - y).square().mean())
    run = diagnostics.load(tmp_path)
    assert run.table("curvature")["stability"].to_numpy() == pytest.approx(true, rel=1e-2)
    assert any("at the present weights" in message for message in run.table("events")["message"])
