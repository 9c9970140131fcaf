"""Products that are wrong without looking so: a formula that is symmetric all the same, gradients that do not come
through, steps too long for the rows of a large table. The oracle is the same loss written so that autograd has its
Hessian."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics.curvature import CurvatureError, measure
from tests.test_curvature_networks import X, Y


class SavedInForward(torch.autograd.Function):
    """Cross-entropy whose gradient is made in the forward, as fused kernels do."""

    @staticmethod
    def forward(ctx, scores, targets):
        p = scores.softmax(1)
        ctx.save_for_backward((p - F.one_hot(targets, 3)) / len(targets))
        return -p[torch.arange(len(targets)), targets].log().mean()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0] * gradient, None


class Right(SavedInForward):
    """Its backward is a function of what it was given."""

    @staticmethod
    def forward(ctx, scores, targets):
        ctx.save_for_backward(scores, targets)
        return F.cross_entropy(scores.detach(), targets)

    @staticmethod
    def backward(ctx, gradient):
        scores, targets = ctx.saved_tensors
        return (scores.softmax(1) - F.one_hot(targets, 3)) / len(targets) * gradient, None


def exact(loss_of, model: nn.Module) -> np.ndarray:
    return exact_by(lambda: loss_of(model), tuple(model.parameters()))


def exact_by(loss, parameters: tuple[Tensor, ...]) -> np.ndarray:
    """Eigenvalues, descending."""
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = [torch.autograd.grad(each, parameters, retain_graph=True, materialize_grads=True) for each in flat]
    matrix = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    return torch.linalg.eigvalsh(matrix).flip(0).numpy()


@pytest.mark.parametrize("loss", [SavedInForward, Right])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_wrong_double_backward_that_is_symmetric(loss, layers):
    torch.manual_seed(0)
    hidden = [nn.Linear(6, 5), nn.Tanh()] if layers == 2 else []
    model = nn.Sequential(*hidden, nn.Linear(5 if hidden else 6, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    estimate = measure(lambda: loss.apply(model(X), Y), model, optimizer, [0.5])
    true = exact(lambda model: F.cross_entropy(model(X), Y), model)
    assert estimate.eigenvalues == pytest.approx(true[:5], rel=1e-2)
    assert estimate.stability == pytest.approx(0.25 * true[0], rel=1e-2)
    wrong = loss is SavedInForward
    assert estimate.method == ("differences" if wrong else "double backward")
    assert any("double backward of SavedInForward is not the derivative" in note for note in estimate.notes) == wrong


class Adapted(nn.Module):
    """A frozen layer with an adapter under a reentrant checkpoint, whose input is made to need a gradient."""

    def __init__(self, reentrant: bool):
        super().__init__()
        torch.manual_seed(0)
        self.base, self.reentrant = nn.Linear(6, 3).requires_grad_(False), reentrant
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 3, bias=False)

    def block(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(torch.tanh(self.down(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return checkpoint(self.block, x, use_reentrant=True) if self.reentrant else self.block(x)


def test_weights_that_a_reentrant_checkpoint_hides():
    adapted, plain = Adapted(True).double(), Adapted(False).double()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    closure = lambda: F.cross_entropy(adapted(X), Y)  # noqa: E731
    closure().backward()
    before = [p.grad.clone() for p in trained]
    estimate = measure(closure, adapted, torch.optim.SGD(trained, lr=0.5), [0.5])
    chosen = nn.ModuleList([plain.down, plain.up])
    true = exact(lambda _: F.cross_entropy(plain(X), Y), chosen)
    assert estimate.eigenvalues == pytest.approx(true[:5], rel=1e-2)
    assert estimate.method == "differences" and any("reentrant" in note for note in estimate.notes)
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(trained, before, strict=True))


def test_copies_of_the_weights_in_the_optimizer_are_named():
    """As float32 master weights: the loss is one of the model's own."""
    model = nn.Linear(6, 3).double()
    masters = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    closure = lambda: F.cross_entropy(model(X), Y)  # noqa: E731
    closure().backward()
    for master, p in zip(masters, model.parameters(), strict=True):
        master.grad = p.grad.clone()
    with pytest.raises(CurvatureError, match="copies of the model's, as float32 master weights"):
        measure(closure, model, torch.optim.SGD(masters, lr=0.5), [0.5])


class Bags(nn.Module):
    """Few of many rows are in a batch; normalized, so that a step as long as the whole table goes much too far."""

    def __init__(self, rows: int):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Parameter(torch.randn(rows, 8)), nn.Linear(8, 5)
        self.bag = True

    def forward(self, x: Tensor) -> Tensor:
        mean = F.embedding_bag(x, self.table) if self.bag else F.embedding(x, self.table).mean(1)
        return 20 * self.out(F.normalize(mean, dim=1))


def test_steps_that_fit_the_rows_in_the_batch():
    model, draw = Bags(40000), torch.Generator().manual_seed(0)
    x, y = torch.randint(40000, (64, 4), generator=draw), torch.randint(5, (64,), generator=draw)
    closure = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    estimate = measure(closure, model, torch.optim.SGD(model.parameters(), lr=0.01), [0.01])
    assert estimate.method == "differences"
    model.double().bag = False
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(closure(), parameters, create_graph=True)

    def product(v: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(v.reshape(-1).copy()).split([p.numel() for p in parameters])
        parts = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        found = torch.autograd.grad(gradient, parameters, parts, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in found]).numpy()

    n = sum(p.numel() for p in parameters)
    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=product, dtype=np.float64)
    true = np.sort(scipy.sparse.linalg.eigsh(operator, k=3, which="LA", tol=1e-4, return_eigenvectors=False))[::-1]
    assert estimate.eigenvalues[:3] == pytest.approx(true, rel=1e-2)


def test_a_root_whose_second_derivative_is_infinite():
    """Distances of points from themselves: the gradient of a norm at 0 is taken to be 0, its derivative is NaN."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()

    def loss_of(model: nn.Module, eps: float) -> Tensor:
        h = torch.tanh(model(X))
        square = (h[:, None] - h[None]).square().sum(-1)
        return (square + eps).sqrt().mean() if eps else (h[:, None] - h[None]).norm(dim=-1).mean()

    estimate = measure(lambda: loss_of(model, 0.0), model, torch.optim.SGD(model.parameters(), lr=0.1), [0.1])
    assert estimate.method == "differences" and any("not finite" in note for note in estimate.notes)
    assert estimate.eigenvalues[0] == pytest.approx(exact(lambda model: loss_of(model, 1e-12), model)[0], rel=1e-2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [nn.GELU, lambda: nn.LayerNorm(64), lambda: nn.Softmax(-1)])
def test_a_loss_that_differentiates_through_large_functions(kind):
    """Of more numbers than those from which on their double backward is ordered for many products."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), kind(), nn.Tanh(), nn.Linear(64, 1, bias=False)).double()
    x = torch.randn(400, 2, dtype=torch.float64)

    def closure(model: nn.Module = model) -> Tensor:
        points = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
        return (slope.sum(1) - x[:, 0]).square().mean()

    estimate = measure(closure, model, torch.optim.SGD(model.parameters(), lr=0.1), [0.1])
    assert estimate.method == "double backward"
    assert estimate.eigenvalues[:3] == pytest.approx(exact(lambda _: closure(), model)[:3], rel=1e-2)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("norm", "axis"), [(nn.BatchNorm1d, 0), (nn.LayerNorm, 1)])
def test_a_penalty_on_gradients_through_a_small_norm(norm, axis):
    """PyTorch differentiates its backward as if mean and deviation did not depend on the inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), norm(5), nn.Tanh(), nn.Linear(5, 3)).double()

    def written_out(x: Tensor) -> Tensor:
        h, layer = model[0](x), model[1]
        y = (h - h.mean(axis, keepdim=True)) * (h.var(axis, unbiased=False, keepdim=True) + layer.eps).rsqrt()
        return model[3](model[2](layer.weight * y + layer.bias))

    def loss(model) -> Tensor:
        x = X.clone().requires_grad_()
        scores = model(x)
        (slope,) = torch.autograd.grad(scores.square().sum(), x, create_graph=True)
        return F.cross_entropy(scores, Y) + slope.square().sum(1).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    estimate = measure(lambda: loss(model), model, optimizer, [0.1])
    written = exact_by(lambda: loss(written_out), tuple(model.parameters()))
    assert estimate.eigenvalues == pytest.approx(written[:5], rel=1e-2)
    assert estimate.method == "differences"
    reasons = ("double backward is not symmetric", "no double backward")  # of a batch norm, since torch 2.15
    assert any(reason in note for note in estimate.notes for reason in reasons)


def test_the_same_number_of_other_weights_is_not_warm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    closure = lambda: F.cross_entropy(model(X), Y)  # noqa: E731
    model[2].requires_grad_(False)
    first = measure(closure, model, optimizer, [0.1])
    model.requires_grad_(True)
    model[0].requires_grad_(False)
    assert measure(closure, model, optimizer, [0.1], previous=first).start == "cold"


@pytest.mark.parametrize("function", [F.hardsigmoid, nn.Hardsigmoid()])
def test_a_function_without_a_double_backward_in_a_checkpoint(function):
    """The backward calls it once more, as it is."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()

    def scores(h: Tensor, wrapped: bool) -> Tensor:
        inside = lambda h: function(3 * h) ** 3  # noqa: E731
        return checkpoint(inside, h, use_reentrant=False) if wrapped else inside(h)

    def loss(wrapped: bool) -> Tensor:
        return F.cross_entropy(3 * model[1](scores(model[0](X.double()), wrapped)), Y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = measure(lambda: loss(False), model, optimizer, [0.1])
    within = measure(lambda: loss(True), model, optimizer, [0.1])
    assert (plain.method, within.method) == ("double backward", "differences")
    np.testing.assert_allclose(within.eigenvalues, plain.eigenvalues, rtol=1e-2, atol=1e-3 * plain.eigenvalues[0])
    assert within.smallest == pytest.approx(plain.smallest, rel=1e-2)


def test_hardsigmoid_in_place_whose_result_nobody_takes():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x = torch.randn(20, 4, dtype=torch.float64)

    def loss(model: nn.Module) -> Tensor:
        h = model(x) * 1.0
        F.hardsigmoid(h, inplace=True)
        return h.square().mean()

    found = measure(lambda: loss(model), model, torch.optim.SGD(model.parameters(), lr=0.1), [0.1])
    truth = exact(lambda model: (F.relu6(model(x) + 3) / 6).square().mean(), model)
    np.testing.assert_allclose(found.eigenvalues, truth[:5], rtol=1e-6)


class Once(torch.autograd.Function):
    """x^3 whose backward cannot be differentiated, and whose second derivative comes out as 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_a_function_that_the_loss_gets_later_is_tested_too():
    w = nn.ParameterList([nn.Parameter(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))])
    optimizer = torch.optim.SGD(w.parameters(), lr=0.1)
    first = measure(lambda: w[0].square().sum(), w, optimizer, [0.1])
    later = measure(lambda: Once.apply(w[0]).sum(), w, optimizer, [0.1], previous=first)
    np.testing.assert_allclose(later.eigenvalues, [12, 6, 3], rtol=1e-3)
    assert "Once" in later.notes[0]


@pytest.mark.parametrize("stopped", ["detach", "no_grad", "logged", "not at all"])
def test_a_gradient_that_is_stopped_on_its_way_is_said(stopped: str):
    """(w - 0.9 target(w))^2, whose gradient takes the target for fixed, as in temporal differences."""
    w = nn.ParameterList([nn.Parameter(torch.tensor([0.5, 1.0], dtype=torch.float64))])

    def closure() -> Tensor:
        if stopped == "detach":
            target = (0.9 * w[0]).detach()
        elif stopped == "no_grad":
            with torch.no_grad():
                target = 0.9 * w[0]
        else:
            target = torch.ones(2, dtype=torch.float64)
        loss = (w[0] - target).square().sum()
        if stopped == "logged":
            loss.detach().item()
        return loss

    found = measure(closure, w, torch.optim.SGD(w.parameters(), lr=0.1), [0.1])
    assert any("detach" in note for note in found.notes) == (stopped in ("detach", "no_grad"))
    np.testing.assert_allclose(found.eigenvalues, [2, 2], rtol=1e-6)


def test_differences_where_the_gradient_is_zero():
    w = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=torch.float64))])
    found = measure(
        lambda: w[0].norm() * 0 + torch.linalg.vector_norm(w[0]) ** 2, w, torch.optim.SGD(w.parameters(), lr=0.1), [0.1]
    )
    assert found.method == "differences"
    np.testing.assert_allclose(found.eigenvalues, [2, 2, 2], rtol=1e-6)


def test_an_infinite_second_derivative_is_as_uncertain_as_it_is():
    """Of |w|^1.5 at 0: a product grows threefold from one length of step to the next."""
    w = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=torch.float64))])
    found = measure(lambda: w[0].abs().pow(1.5).sum(), w, torch.optim.SGD(w.parameters(), lr=0.1), [0.1])
    assert found.method == "differences"
    assert any("uncertain by about 68%" in note for note in found.notes), found.notes
