"""Activations by module and by function, attention, hidden units and inputs: what is seen, and under which name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import diagnostics
from diagnostics import stats
from diagnostics.monitor import attention


def watch(model: nn.Module, x: Tensor, path: Path, *, closure: bool = True, steps: int = 1, loss: Any = None) -> Any:
    """A short training on one batch; every update is measured."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = loss or (lambda out: out.square().mean())
    with diagnostics.watch(model, optimizer, path / "run", every=1, curvature_every=10**6, budget=1e9) as monitor:
        for _ in range(steps + (not closure)):  # without a closure the first forward is left alone
            optimizer.zero_grad()
            value = loss(model(x))
            value.backward()
            optimizer.step()
            monitor.step(value, (lambda: loss(model(x))) if closure else None)
    run = diagnostics.load(path / "run")
    assert "measurement-failed" not in set(run.table("events")["kind"]), run.table("events")["message"].tolist()
    return run


class Functional(nn.Module):
    """One linear layer, then an activation by function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(5, 8), nn.Linear(8, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


FUNCTIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "F.relu": ("relu", F.relu),
    "torch.relu": ("relu", torch.relu),
    "x.relu_()": ("relu", lambda x: x.relu_()),
    "F.relu(inplace)": ("relu", lambda x: F.relu(x, inplace=True)),
    "x.clamp(min=0)": ("relu", lambda x: x.clamp(min=0)),
    "clamp_min": ("relu", lambda x: torch.clamp_min(x, 0)),
    "F.leaky_relu": ("leaky_relu", F.leaky_relu),
    "F.gelu": ("gelu", F.gelu),
    "F.silu": ("silu", F.silu),
    "sigmoid": ("sigmoid", torch.sigmoid),
    "x.tanh()": ("tanh", lambda x: x.tanh()),
    "F.hardtanh": ("hardtanh", F.hardtanh),
    "F.softmax": ("softmax", lambda x: F.softmax(x, dim=-1)),
    "x.softmax(-1)": ("softmax", lambda x: x.softmax(-1)),
    "torch.sign": ("threshold", torch.sign),
}


@pytest.mark.parametrize("closure", [True, False], ids=["closure", "training forward"])
@pytest.mark.parametrize("spelling", FUNCTIONS)
def test_functions(spelling: str, closure: bool, tmp_path: Path) -> None:
    kind, function = FUNCTIONS[spelling]
    torch.manual_seed(0)
    model, x = Functional(function), torch.randn(400, 5)
    with torch.no_grad():
        model.a.bias[:3] = -50
    run = watch(model, x, tmp_path, closure=closure)
    row = run.table("units").iloc[-1]
    assert row["activation"] == kind
    assert row["layer"] == next(n for n in (kind, "clamp_min", "clamp", "hardtanh", "sign") if n in row["layer"])
    assert row["units"] == 8 and row["hidden"] == 1
    expected_dead = 3 / 8 if kind in ("relu", "gelu", "silu") else math.nan
    assert row["dead_fraction"] == pytest.approx(expected_dead, nan_ok=True)
    with torch.no_grad():
        inputs = model.a(x).mean().item()
    assert row["input_mean"] == pytest.approx(inputs, abs=0.05)
    if kind == "threshold":
        assert row["saturated_fraction"] == 1
    if kind in ("sigmoid", "tanh"):
        assert row["saturated_fraction"] == pytest.approx(3 / 8)


class Boxes(nn.Module):
    """What lies outside of a picture is cut off, and one box inside of another: no function of a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        corners = self.out(self.a(x).clamp(min=0))
        inside = corners.detach().clamp(min=0, max=1)
        overlap = (inside[:, None, 2:] - inside[None, :, :2]).clamp(min=0).prod(-1)
        return corners * overlap.sum(1, keepdim=True)


@pytest.mark.parametrize("closure", [True, False], ids=["closure", "training forward"])
def test_clamps_of_what_has_no_gradient_are_no_units(closure: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = watch(Boxes(), torch.randn(400, 5), tmp_path, steps=3, closure=closure).table("units")
    assert list(table["layer"]) == ["clamp"] * 3 and list(table["units"]) == [8] * 3


def test_windows_need_three_hundred_inputs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    run = watch(model, torch.randn(100, 5), tmp_path, steps=4)
    assert run.table("units")["dead_fraction"].isna().tolist() == [True, True, False, False]


def test_channels_are_units(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 2)
    )
    with torch.no_grad():
        model[1].bias[0] = -100
    row = watch(model, torch.randn(10, 1, 8, 8), tmp_path).table("units").iloc[0]
    assert (row["layer"], row["units"], row["dead_fraction"]) == ("2", 4, 0.25)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 2), nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.act(self.a(x))
        return self.c(self.act(self.b(hidden))), {"hidden": hidden}


def test_a_module_called_twice_and_outputs_in_tuples(tmp_path: Path) -> None:
    units = watch(Twice(), torch.randn(8, 5), tmp_path, loss=lambda out: out[0].square().mean()).table("units")
    assert list(units["layer"]) == ["act#0", "act#1"] and list(units["units"]) == [6, 7]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block, self.out, self.reentrant = nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(self.block, x.requires_grad_(), use_reentrant=self.reentrant))


@pytest.mark.parametrize("closure", [True, False], ids=["closure", "training forward"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_does_not_count_twice(reentrant: bool, closure: bool, tmp_path: Path) -> None:
    run = watch(Checkpointed(reentrant), torch.randn(8, 5), tmp_path, closure=closure)
    units = run.table("units")
    assert list(units["layer"]) == ["block.1"]
    assert run.table("scalars")["micro_batches"].eq(1).all()


class Gated(nn.Module):
    """Squeeze and excitation: the sigmoid multiplies, it is no activation that could saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu()
        gate = torch.sigmoid(self.gate(h.mean((2, 3))))
        return torch.sigmoid(self.out((h * gate[:, :, None, None]).mean((2, 3))))


def test_gates_and_outputs_are_told_from_hidden_activations(tmp_path: Path) -> None:
    units = watch(Gated(), torch.randn(10, 1, 8, 8), tmp_path).table("units")
    seen = list(zip(units["layer"], units["activation"], units["hidden"], strict=True))
    assert seen == [("relu", "relu", 1), ("sigmoid#0", "gate", 1), ("sigmoid#1", "sigmoid", 0)]
    assert units["saturated_fraction"].isna()[1]


class Attending(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.qkv, self.out = kind, nn.Linear(8, 24), nn.Linear(8, 2)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind.startswith("mha"):
            y, _ = self.mha(x, x, x, need_weights=self.kind == "mha weights")
            return self.out(y)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.kind == "causal")
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["sdpa", "causal", "mha", "mha weights"])
def test_attention(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Attending(kind), torch.randn(4, 6, 8) * 3
    row = watch(model, x, tmp_path).table("units").iloc[0]
    with torch.no_grad():
        weight, bias = (model.mha.in_proj_weight, model.mha.in_proj_bias) if "mha" in kind else model.qkv.parameters()
        q, k, _ = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in F.linear(x, weight, bias).chunk(3, -1))
        logits = q @ k.transpose(-1, -2) / 2
        if kind == "causal":
            logits = logits.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
        p = logits.softmax(-1)
        reach = torch.arange(1, 7).expand_as(p[..., 0]) if kind == "causal" else torch.full_like(p[..., 0], 6)
        entropy = torch.special.entr(p).sum(-1)[reach > 1] / reach[reach > 1].log()
    assert row["layer"] == ("mha.attention" if "mha" in kind else "attention")
    assert row["activation"] == "softmax"
    assert row["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-2)
    assert row["max_input"] == pytest.approx(logits.max().item(), rel=1e-2)


@pytest.mark.parametrize("length", [16, 48, 64, 100])
def test_attention_is_sampled_at_all_positions(length: int) -> None:
    """Of a causal mask most of all: the first position sees itself alone, and the second two."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 8, 4, length, 8).mul(2).unbind()
    logits = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    reach = torch.arange(1, length + 1).expand(8, 4, length)
    exact = (torch.special.entr(logits.softmax(-1)).sum(-1) / reach.clamp(min=2).log())[reach > 1].mean()
    for counts in (attention.count(q, k, k, is_causal=True), attention.count_logits(logits)):
        assert counts is not None
        assert float(counts.moments[6] / counts.moments[7]) == pytest.approx(float(exact), rel=0.1)


def test_a_softmax_that_a_mask_leaves_one_entry_has_no_entropy() -> None:
    logits = torch.full((4, 6), -math.inf)
    logits[:, 2] = 1.0
    moments = stats.count_softmax(logits, logits.softmax(-1)).moments
    assert math.isnan(moments[6])
    logits[1:, 3] = 1.0  # rows with a choice are counted alone
    moments = stats.count_softmax(logits, logits.softmax(-1)).moments
    assert moments[6] / moments[7] == pytest.approx(1.0)
    assert attention.count_logits(torch.zeros(0, 3, 3)) is None


def test_probe(tmp_path: Path) -> None:
    model = Functional(lambda x: diagnostics.probe("mine", x, "relu") * (x > 0))
    with torch.no_grad():
        model.a.bias[:2] = -50
    row = watch(model, torch.randn(400, 5), tmp_path).table("units").iloc[0]
    assert (row["layer"], row["activation"], row["dead_fraction"]) == ("mine", "relu", 0.25)
    x = torch.randn(3)
    assert diagnostics.probe("free", x, "relu") is x


def test_evaluation_is_not_counted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for _ in range(3):
            with torch.no_grad():
                model(torch.full((50, 5), 1e6))
            optimizer.zero_grad()
            loss = model(torch.randn(20, 5)).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert diagnostics.load(tmp_path / "run").table("units")["input_mean"].abs().max() < 10


# -- hidden units


def clone(layer: nn.Linear | nn.Conv2d, i: int, j: int) -> None:
    with torch.no_grad():
        layer.weight[j], layer.bias[j] = layer.weight[i], layer.bias[i]


def symmetry(model: nn.Module, x: Tensor, path: Path) -> dict[str, tuple[int, int]]:
    table = watch(model, x, path).table("symmetry")
    return {row.layer: (row.units, row.distinct_units) for row in table.itertuples() if "outputs" not in row.layer}


def test_cloned_units_of_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    clone(model[0], 0, 1)
    clone(model[3], 0, 1)  # alike on one side only
    with torch.no_grad():
        model[3].weight[:, 1] = model[3].weight[:, 0]
    assert symmetry(model, torch.randn(8, 5), tmp_path) == {"0.weight": (8, 7), "3.weight": (6, 6)}


def test_cloned_channels_up_to_the_flattened_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)
    )
    clone(model[0], 2, 3)
    clone(model[3], 0, 2)
    with torch.no_grad():
        model[3].weight[:, 3] = model[3].weight[:, 2]
        model[6].weight[:, 32:] = model[6].weight[:, :16]
    assert symmetry(model, torch.randn(8, 1, 8, 8), tmp_path) == {"0.weight": (4, 3), "3.weight": (3, 2)}


def test_residual_streams_and_outputs_are_no_hidden_units(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.d(h + self.c(F.relu(self.b(h))))

    assert symmetry(Residual(), torch.randn(8, 5), tmp_path) == {"b.weight": (9, 9)}


def test_cloned_heads(tmp_path: Path) -> None:
    model = Attending("mha")
    with torch.no_grad():
        for tensor in (model.mha.in_proj_weight, model.mha.in_proj_bias):
            split = tensor.reshape(3, 2, -1)
            split[:, 1] = split[:, 0]
        model.mha.out_proj.weight[:, 4:] = model.mha.out_proj.weight[:, :4]
    assert symmetry(model, torch.randn(2, 6, 8), tmp_path)["mha.heads"] == (2, 1)


# -- inputs


def test_inputs_of_the_first_layer(tmp_path: Path) -> None:
    x = torch.randn(200, 5) * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 3
    x[:, 4] += x[:, 0]
    table = watch(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), x, tmp_path).table("inputs")
    assert list(table["feature"]) == ["0", "1", "2", "3", "4"]
    assert list(table["mean"]) == pytest.approx(x.mean(0).tolist(), rel=1e-5)
    assert list(table["std"]) == pytest.approx(x.std(0, correction=0).tolist(), rel=1e-4)
    condition = torch.linalg.cond(torch.corrcoef(x.double().T)).item()
    assert list(table["condition"]) == pytest.approx([condition] * 5, rel=1e-2)
    assert (table["nonfinite"] == 0).all()


class Prepared(nn.Module):
    """Scales and reorders its inputs before the first layer, as loops do that index their data in the closure."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[torch.arange(len(x) - 1, -1, -1)] * 2 + 1)


def test_inputs_that_are_computed_from_the_data(tmp_path: Path) -> None:
    """What the first layer reads is what makes its curvature."""
    x = torch.randn(200, 5)
    table = watch(Prepared(), x, tmp_path).table("inputs")
    assert list(table["mean"]) == pytest.approx((2 * x.mean(0) + 1).tolist(), abs=1e-5)
    assert list(table["std"]) == pytest.approx(2 * x.std(0, correction=0), rel=1e-4)


def test_wide_images_by_channel(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 32, 32))
    x = torch.randn(4, 3, 32, 32) + torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    table = watch(model, x, tmp_path).table("inputs")
    assert list(table["mean"]) == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=1e-5)


@pytest.mark.parametrize("in_own_words", [False, True])
def test_a_loss_that_differentiates_by_itself(in_own_words: bool, tmp_path: Path) -> None:
    """As in physics-informed networks: u' + u = 0 and u(0) = 1. The extra forward needs a graph there. A library may
    ask for one before PyTorch does (Pyro's bounds)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss() -> Tensor:
        t = torch.linspace(0, 1, 20).unsqueeze(1).requires_grad_()
        u = model(t)
        if in_own_words and not u.requires_grad:
            raise ValueError("this bound cannot be differentiated")
        slope = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        return (slope + u).square().mean() + (model(torch.zeros(1, 1)) - 1).square().mean()

    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=1e9) as monitor:
        for _ in range(12):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, closure=loss)
    run = diagnostics.load(tmp_path / "run")
    assert run.table("events").empty
    assert len(run.table("curvature")) > 2 and run.table("scalars")["overshoot"].count() > 1
    assert set(run.table("units")["layer"]) == {"1#0", "1#1"}


@pytest.mark.parametrize(
    "single",
    [
        torch.squeeze,
        lambda z: z.view(()),
        lambda z: z.reshape(()),
        lambda z: z[0, 0],
        lambda z: z.flatten()[0],
        lambda z: z.select(0, 0).select(0, 0),
        lambda z: z.unbind(1)[0].squeeze().unsqueeze(0),
    ],
)
def test_an_output_that_is_a_single_number(single: Any, tmp_path: Path) -> None:
    """As a physics-informed loss has it at its initial point."""
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        return (single(model(torch.zeros(1, 1))) - 1).square().sum() + model(torch.ones(8, 1)).square().mean()

    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure)
    run = diagnostics.load(tmp_path / "run")
    assert "measurement-failed" not in set(run.table("events")["kind"])
    assert set(run.table("units")["layer"]) == {"1#0", "1#1"}


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Elman(nn.Module):
    def __init__(self, nonlinearity: str, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.RNN(3, 6, layers, nonlinearity=nonlinearity, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])

    @torch.no_grad()
    def received(self, x: Tensor) -> Tensor:
        """What the last layer's units receive at each step, by the definition."""
        act = torch.tanh if self.rnn.nonlinearity == "tanh" else torch.relu
        for layer in range(self.rnn.num_layers):
            own, state, b, c = (getattr(self.rnn, f"{name}_l{layer}") for name in NAMES)
            h, sums = x.new_zeros(len(x), 6), []
            for step in x.unbind(1):
                sums.append(step @ own.T + b + h @ state.T + c)
                h = act(sums[-1])
            received = torch.stack(sums, 1)
            x = act(received)
        return received


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_units_of_a_plain_recurrent_net(nonlinearity: str, layers: int, tmp_path: Path) -> None:
    model, x = Elman(nonlinearity, layers), 3 * torch.randn(40, 10, 3)
    with torch.no_grad():
        getattr(model.rnn, f"bias_ih_l{layers - 1}")[0] = -30.0  # a unit at one end of its function
        getattr(model.rnn, f"weight_hh_l{layers - 1}")[0] = 0.0
    (row,) = watch(model, x, tmp_path).table("units").to_dict("records")
    assert (row["layer"], row["activation"], row["units"]) == (f"rnn.{nonlinearity}", nonlinearity, 6)
    z = model.received(x)  # after an update of one thousandth
    slope = 1 - z.tanh().square() if nonlinearity == "tanh" else (z > 0).float()
    assert row["derivative"] == pytest.approx(float(slope.mean()), rel=1e-3)
    assert row["hidden"] == 1
    ended = "saturated_fraction" if nonlinearity == "tanh" else "dead_fraction"
    assert row[ended] == pytest.approx(1 / 6)
    if nonlinearity == "tanh":
        assert row["std"] == pytest.approx(float(z.tanh().std(correction=0)), rel=1e-3)
