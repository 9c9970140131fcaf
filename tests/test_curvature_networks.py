"""Real networks: each is measured, and its training state is bitwise as before.

The oracle of each product is a central difference of gradients in double precision, made here.
"""

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics.curvature import Estimate, measure, undisturbed

Case = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = data(12, 6), torch.arange(12) % 3


def classify(module: nn.Module, x: Tensor = X) -> Case:
    return module.double(), lambda model: F.cross_entropy(model(x), Y)


class Sdpa(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.view(-1, 1, 6).expand(-1, 4, -1) + self.ramp).view(-1, 1, 4, 24).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean((1, 2)))

    ramp = torch.arange(4, dtype=torch.float64).view(1, 4, 1)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.rnn, self.out = kind(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.view(-1, 3, 2))[0][:, -1])


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.view(-1, 1, 6) * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64).view(1, 3, 1)
        return self.out(self.attention(sequence, sequence, sequence, need_weights=False)[0].mean(1))


class Words(nn.Module):
    def __init__(self, bag: bool = False, sparse: bool = False):
        super().__init__()
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.embedding, self.out = kind(10, 4, sparse=sparse), nn.Linear(4, 3)
        self.bag = bag

    def forward(self, x: Tensor) -> Tensor:
        words = torch.arange(36).view(12, 3) % 7
        embedded = self.embedding(words)
        return self.out(torch.tanh(embedded if self.bag else embedded.mean(1)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.used(x)))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.first, self.body, self.reentrant = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), reentrant
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.body, self.first(x), use_reentrant=self.reentrant))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.view_as_complex(data(4, 6, 2) / 3))
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x.to(torch.complex128) @ self.weight.t()).abs().tanh())


def frozen() -> Case:
    model, loss = classify(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    model[0].weight.requires_grad_(False)
    return model, loss


def ctc() -> Case:
    model = nn.Linear(6, 5).double()
    x = data(7, 2, 6)
    targets, lengths = torch.tensor([[1, 2], [3, 4]]), torch.tensor([7, 7])
    return model, lambda m: F.ctc_loss(m(x).log_softmax(-1), targets, lengths, torch.tensor([2, 2]))


def weight_normed(old: bool) -> Case:
    layer = nn.Linear(6, 5)
    if old:
        with pytest.warns(FutureWarning):
            layer = torch.nn.utils.weight_norm(layer)
    else:
        layer = torch.nn.utils.parametrizations.weight_norm(layer)
    return classify(nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 3)))


def mlp(*middle: nn.Module) -> Case:
    return classify(nn.Sequential(nn.Linear(6, 5), *middle, nn.Linear(5, 3)))


CASES: dict[str, tuple[Callable[[], Case], str]] = {
    "batch norm": (lambda: mlp(nn.BatchNorm1d(5), nn.Tanh()), "double backward"),
    "dropout": (lambda: mlp(nn.Tanh(), nn.Dropout(0.4)), "double backward"),
    "in-place": (lambda: mlp(nn.ReLU(inplace=True)), "double backward"),
    "attention": (lambda: classify(Sdpa()), "double backward"),
    "multi-head attention": (lambda: classify(MultiHead()), "double backward"),
    "LSTM": (lambda: classify(Recurrent(nn.LSTM)), "double backward"),
    "GRU": (lambda: classify(Recurrent(nn.GRU)), "double backward"),
    "embedding": (lambda: classify(Words()), "double backward"),
    "sparse embedding": (lambda: classify(Words(sparse=True)), "double backward"),
    "embedding bag": (lambda: classify(Words(bag=True)), "differences"),
    "tied": (lambda: classify(Tied()), "double backward"),
    "frozen": (frozen, "double backward"),
    "unused": (lambda: classify(Unused()), "double backward"),
    "checkpoint": (lambda: classify(Checkpointed(False)), "double backward"),
    "reentrant checkpoint": (lambda: classify(Checkpointed(True)), "differences"),
    "complex": (lambda: classify(Complex()), "double backward"),
    "hardsigmoid": (lambda: mlp(nn.Hardsigmoid()), "double backward"),
    "CTC": (ctc, "differences"),
    "weight norm": (lambda: weight_normed(False), "double backward"),
    "old weight norm": (lambda: weight_normed(True), "double backward"),
}


def top_quotient(estimate: Estimate, model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> tuple[float, float]:
    """v'Hv and |Hv - theta v| of the top eigenvector by differences, on the weights themselves and restored."""
    assert estimate.vectors is not None
    parameters, v = estimate.parameters, estimate.vectors[0]
    reals = [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in parameters]
    kept = [r.clone() for r in reals]

    def gradient(step: float) -> Tensor:
        for r, k, part in zip(reals, kept, v.split([r.numel() for r in reals]), strict=True):
            r.copy_(k + step * part.view(r.shape))
        torch.manual_seed(5)
        value = loss(model)
        if any(isinstance(module, Checkpointed) for module in model.modules()):
            model.zero_grad()
            value.backward()
            gradients = [p.grad for p in parameters]
        else:
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        for r, k in zip(reals, kept, strict=True):
            r.copy_(k)
        flat = [
            torch.zeros(r.numel(), dtype=r.dtype)
            if g is None
            else (torch.view_as_real(g) if g.is_complex() else g.to_dense() if g.is_sparse else g).reshape(-1)
            for g, r in zip(gradients, reals, strict=True)
        ]
        return torch.cat(flat)

    product = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    return float(v @ product), float((product - estimate.eigenvalues[0] * v).norm())


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list:
    return [
        copy.deepcopy(model.state_dict()),
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        copy.deepcopy(optimizer.state_dict()),
        torch.get_rng_state(),
    ]


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.to_dense() if a.is_sparse else a, b.to_dense() if b.is_sparse else b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("name", CASES)
def test_measured_exactly_and_left_alone(name: str):
    torch.manual_seed(0)
    (make, method) = CASES[name]
    model, loss = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss(model).backward()
    optimizer.step()
    torch.manual_seed(5)
    before = state_of(model, optimizer)
    estimate = measure(
        lambda: loss(model), model, optimizer, [0.1], tolerance=1e-6 if method != "differences" else 1e-3
    )
    assert same(before, state_of(model, optimizer))
    assert estimate.method == method
    assert estimate.loss_spread == pytest.approx(0, abs=1e-12)
    quotient, residual = top_quotient(estimate, model, loss)
    tolerance = 1e-5 if method != "differences" else 2e-3
    assert quotient == pytest.approx(estimate.eigenvalues[0], rel=tolerance)
    assert residual < max(5 * estimate.residuals[0], 20 * tolerance * abs(quotient))
    if method == "differences":
        assert any("differences" in note for note in estimate.notes)


def test_a_wrong_double_backward_is_caught_by_the_self_test():
    class Product(torch.autograd.Function):
        """a b, whose backward forgets that b's gradient depends on a."""

        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad * b, grad * a.detach()

    torch.manual_seed(0)
    layer, head = nn.Linear(6, 8).double(), nn.Linear(4, 3).double()
    model = nn.Sequential(layer, head)

    def closure() -> Tensor:
        return F.cross_entropy(head(Product.apply(*layer(X).chunk(2, -1))), Y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    estimate = measure(closure, model, optimizer, [0.1], tolerance=1e-3)
    assert estimate.method == "differences"
    assert any("not symmetric" in note for note in estimate.notes)


def test_lost_orthogonality_is_not_taken_for_a_wrong_double_backward():
    torch.manual_seed(0)
    features = F.relu(torch.randn(64, 50))
    head = nn.Linear(50, 3, bias=False)
    with torch.no_grad():
        head.weight.normal_(0, 3)
        targets = head(features).argmax(1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    estimate = measure(lambda: F.cross_entropy(head(features), targets), head, optimizer, [0.1], tolerance=1e-4)
    assert estimate.method == "double backward"
    x, p = features.double(), F.softmax(features.double() @ head.weight.detach().double().t(), 1)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    exact = torch.einsum("nij,na,nb->iajb", blocks, x, x).reshape(150, 150) / 64
    assert estimate.eigenvalues[0] == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-3)


def test_every_random_state_is_restored():
    model = nn.Linear(2, 2)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with undisturbed(model):
        torch.rand(3), random.random(), np.random.rand(2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_hooks_on_parameters_do_not_see_the_measurement():
    model, loss = mlp(nn.Tanh())
    seen = []
    for p in model.parameters():
        p.register_hook(lambda g: seen.append("hook"))
        p.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    measure(lambda: loss(model), model, torch.optim.SGD(model.parameters(), lr=0.1), [0.1])
    assert seen == []
    loss(model).backward()
    assert sorted(set(seen)) == ["accumulated", "hook"]


def test_batch_norm_is_measured_as_it_is_trained():
    torch.manual_seed(0)
    model, loss = mlp(nn.BatchNorm1d(5), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained = measure(lambda: loss(model), model, optimizer, [0.1], tolerance=1e-6).eigenvalues[0]
    model.eval()
    evaluated = measure(lambda: loss(model), model, optimizer, [0.1], tolerance=1e-6).eigenvalues[0]
    assert trained != pytest.approx(evaluated, rel=1e-2)
    assert not model.training


@pytest.mark.slow
def test_compiled_models_are_measured_eagerly():
    torch.manual_seed(0)
    model, loss = mlp(nn.Tanh())
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(compiled).backward()
    optimizer.step()
    plain = measure(lambda: loss(model), model, optimizer, [0.1])
    through = measure(lambda: loss(compiled), compiled, optimizer, [0.1])
    assert through.method == "double backward"
    assert through.eigenvalues == pytest.approx(plain.eigenvalues)


def test_autocast_keeps_its_precision_and_says_so():
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), None
    x = X.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), Y)

    low = measure(closure, model, optimizer, [0.1])
    high = measure(lambda: F.cross_entropy(model(x), Y), model, optimizer, [0.1])
    assert loss is None and low.method == "double backward"
    assert low.eigenvalues[0] == pytest.approx(high.eigenvalues[0], rel=0.02)
    assert low.symmetry_defect > 10 * high.symmetry_defect
    assert any("half precision" in note for note in low.notes)
