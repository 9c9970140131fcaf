"""Losses made of derivatives, with and without their graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def derivative(y, x, **how):
    return torch.autograd.grad(y.sum(), x, **how)[0]


def residual(net, x, kept):
    """Of u'' = -sin x, as in a physics-informed network."""
    u = net(x)
    first = derivative(u, x, create_graph=True)
    second = derivative(first, x, **({"create_graph": True} if kept else {"retain_graph": True}))
    return F.mse_loss(second, -x.sin())


def boundary(net):
    return net(torch.tensor([[0.0], [torch.pi]])).square().mean()


def penalty(net, x, kept):
    """Of gradients, as of a critic."""
    slopes = derivative(net(x), x, create_graph=kept, retain_graph=True)
    return net(x).mean() + 10 * (slopes.norm(dim=1) - 1).square().mean()


def moved_input(net, x, kept):
    """An adversarial example, which is to be a constant."""
    return F.mse_loss(net(x + 0.1 * derivative(net(x), x, create_graph=kept).sign()), x)


def weighted(net, x, kept):
    """By a derivative, which is to be a constant."""
    return (derivative(net(x), x, create_graph=kept).abs() * (net(x) - x).square()).mean() + net(x).square().mean()


def logged(net, x, kept):
    print(float(derivative(net(x), x, create_graph=kept, retain_graph=True).detach().norm()))
    return F.mse_loss(net(x), x)


CASES = {
    "residual": (lambda net, x, kept: residual(net, x, kept) + boundary(net), True),
    "residual weighed": (lambda net, x, kept: sum((boundary(net), 0.1 * residual(net, x, kept))), True),
    "penalty": (penalty, True),
    "moved input": (moved_input, False),
    "weighted": (weighted, False),
    "logged": (logged, False),
}


def trained(folder, unit, loss_of):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), unit(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    with diagnostics.watch(net, optimizer, folder, budget=ANY, curvature_every=15) as monitor:
        for _ in range(30):
            x = (torch.pi * torch.rand(32, 1)).requires_grad_()
            optimizer.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x: loss_of(net, x))
    return diagnostics.load(folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kept", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", CASES)
def test_a_term_of_derivatives_without_their_graph_is_told(name, kept, tmp_path):
    loss_of, wrong = CASES[name]
    diagnosis = diagnostics.diagnose(trained(tmp_path, nn.Tanh, lambda net, x: loss_of(net, x, kept)))
    told = [each for each in diagnosis.findings if each.cause == "derivative-without-graph"]
    assert not diagnosis.crashed
    assert len(told) == (wrong and not kept)
    assert all(0 < each.evidence["share of the loss"] < 1 for each in told)


@pytest.mark.parametrize(
    ("unit", "loss_of", "expected"),
    [
        (nn.ReLU, CASES["residual"][0], [("zero-gradient", "piecewise-linear")]),
        (nn.ReLU, penalty, []),  # first derivatives are enough
        pytest.param(nn.SiLU, CASES["residual"][0], [], marks=pytest.mark.exhaustive),
    ],
)
def test_second_derivatives_of_a_network_that_has_none(unit, loss_of, expected, tmp_path):
    run = trained(tmp_path, unit, lambda net, x: loss_of(net, x, True))
    assert run.meta["no_second_derivative"] == bool(expected)
    told = [(each.kind, each.cause) for each in diagnostics.diagnose(run).alarms if each.kind == "zero-gradient"]
    assert told == expected
