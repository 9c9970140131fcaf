"""Units alike on both sides only: value channels of attention, in the ways people write it, and recurrent units."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics import stats

D, HEADS = 8, 2


def hidden(run):
    """The table of the units that other layers read."""
    table = run.table("symmetry")
    return table.loc[~table["layer"].astype(str).str.contains("outputs")]


Split = Callable[[Tensor], tuple[Tensor, ...]]


def split_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def chunked(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(split_heads(part) for part in x.chunk(3, dim=-1))


def permuted(x: Tensor) -> tuple[Tensor, ...]:
    return x.reshape(len(x), -1, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4).unbind(0)


def indexed(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(split_heads(x[..., at * D : (at + 1) * D]) for at in range(3))


def interleaved(x: Tensor) -> tuple[Tensor, ...]:
    return x.view(len(x), -1, HEADS, 3 * D // HEADS).transpose(1, 2).chunk(3, -1)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1)
    return F.dropout(weights, 0.0) @ v


def by_function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Attention(nn.Module):
    def __init__(self, split: Split | None, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.split, self.attend = split, attend
        if split is None:
            self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))
        else:
            self.qkv = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        if self.split is None:
            q, k, v = (split_heads(project(x)) for project in (self.query, self.key, self.value))
        else:
            q, k, v = self.split(self.qkv(x))
        mixed = self.attend(q, k, v)
        return x + self.out(mixed.transpose(1, 2).contiguous().flatten(2))

    def values(self) -> tuple[nn.Linear, list[int]]:
        """The layer that makes the values, and its rows, head by head."""
        if self.split is None:
            return self.value, list(range(D))
        if self.split is interleaved:
            return self.qkv, [12 * head + 8 + channel for head in range(HEADS) for channel in range(D // HEADS)]
        return self.qkv, list(range(2 * D, 3 * D))


def recorded(model: nn.Module, path: Path) -> dict[str, tuple[int, int, int]]:
    """Layer -> units, distinct units, groups."""
    torch.manual_seed(1)
    x = torch.randn(3, 5, D)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, path, every=1, curvature_every=10**6, budget=1e9) as monitor:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        monitor.step(loss, closure=lambda: model(x).square().mean())
    run = diagnostics.load(path)
    assert "measurement-failed" not in set(run.table("events")["kind"]), run.table("events")["message"].tolist()
    return {row.layer: (row.units, row.distinct_units, row.groups) for row in hidden(run).itertuples()}


WAYS = {
    "separate": (None, written_out),
    "separate, by function": (None, by_function),
    "chunk": (chunked, by_function),
    "permute": (permuted, by_function),
    "index": (indexed, written_out),
    "interleaved": (interleaved, by_function),
}


def alike(model: Attention, first: int, second: int, outgoing: bool) -> None:
    layer, rows = model.values()
    with torch.no_grad():
        for each in (layer.weight, layer.bias):
            each[rows[second]] = each[rows[first]]
        if outgoing:
            model.out.weight[:, second] = model.out.weight[:, first]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("pair", "outgoing", "distinct"),
    [((1, 3), True, D - 1), ((1, 3), False, D), ((1, 5), True, D)],
    ids=["both sides", "incoming only", "of two heads"],
)
def test_value_channels(way: str, pair: tuple[int, int], outgoing: bool, distinct: int, tmp_path: Path) -> None:
    """Channels of two heads are summed with weights of their own, which part them."""
    torch.manual_seed(0)
    model = Attention(*WAYS[way])
    alike(model, *pair, outgoing)
    channels, heads = recorded(model, tmp_path / "run").values()
    assert channels == (D, distinct, HEADS)
    assert heads == (HEADS, HEADS, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("outgoing", [True, False])
def test_heads(way: str, outgoing: bool, tmp_path: Path) -> None:
    """Two of them with the same values, and the same columns of the output projection or others."""
    torch.manual_seed(0)
    model = Attention(*WAYS[way])
    for channel in range(D // HEADS):
        alike(model, channel, D // HEADS + channel, outgoing)
    found = recorded(model, tmp_path / "run")
    (name,) = (each for each in found if each.endswith("heads"))
    assert name == ("value.heads" if model.split is None else "qkv.heads")
    assert found[name] == (HEADS, HEADS - outgoing, 1)


def test_value_channels_of_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(D, HEADS, batch_first=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = module, nn.Linear(D, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.attention(x, x, x, need_weights=False)[0])

    with torch.no_grad():
        module.in_proj_weight[2 * D + 3] = module.in_proj_weight[2 * D + 1]
        module.out_proj.weight[:, 3] = module.out_proj.weight[:, 1]
    found = recorded(Model(), tmp_path / "run")
    assert found == {"attention.heads": (HEADS, HEADS, 1), "attention.in_proj_weight": (D, D - 1, HEADS)}


def test_parts_that_are_read_twice_are_not_judged(tmp_path: Path) -> None:
    """Units 2 and 3 are in both halves: what reads them is in two places."""

    class Overlapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(D, 6), nn.Linear(4, D), nn.Linear(4, D)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            return self.b(h[..., :4]) + self.c(h[..., 2:])

    assert recorded(Overlapping(), tmp_path / "run") == {}


def test_a_network_that_is_called_twice(tmp_path: Path) -> None:
    """As the two of a pair, or a solution at neighbouring times; not where what reads its units is another one."""

    class Twice(nn.Module):
        def __init__(self, other: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(D, 6), nn.Linear(6, 4), nn.Linear(6, 4) if other else None
            with torch.no_grad():
                self.a.weight[3], self.a.bias[3], self.b.weight[:, 3] = self.a.weight[1], 0, self.b.weight[:, 1]
                self.a.bias[1] = 0

        def forward(self, x: Tensor) -> Tensor:
            first, second = (torch.relu(self.a(each)) for each in (x, x + 1))
            return self.b(first) - (self.c or self.b)(second)

    assert recorded(Twice(other=False), tmp_path / "alike") == {"a.weight": (6, 5, 1)}
    assert recorded(Twice(other=True), tmp_path / "other") == {}


@pytest.mark.parametrize(("value", "cause"), [(0.0, "zero-initialization"), (0.1, "constant-initialization")])
def test_equal_attention_weights_are_named(value: float, cause: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention(chunked, by_function)
    with torch.no_grad():
        for each in model.parameters():
            each.fill_(value)
    x, y = torch.randn(64, 5, D), torch.randn(64, 5, D)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for _ in range(12):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x), y))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [(each.kind, each.cause) for each in found] == [("symmetry", cause)]


def test_a_zero_output_projection_is_no_symmetry(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention(permuted, by_function)
    nn.init.zeros_(model.out.weight)
    assert list(recorded(model, tmp_path / "run").values()) == [(D, D, HEADS), (HEADS, HEADS, 1)]


class Own(nn.Module):
    """Layers as products with parameters of its own."""

    def __init__(self, same: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.b, self.v = (nn.Parameter(torch.randn(*shape)) for shape in ((5, 6), (6,), (6, 3)))
        with torch.no_grad():
            for each in (self.w.T, self.b, self.v):
                each[list(same[1:])] = each[list(same[:1])]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w + self.b) @ self.v


@pytest.mark.parametrize(("same", "distinct"), [((), 6), ((1, 4), 5), ((0, 2, 3), 4)])
def test_layers_written_as_products(same: tuple[int, ...], distinct: int, tmp_path: Path) -> None:
    model = Own(same)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(32, 5)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        monitor.step(loss, closure=lambda: model(x).square().mean())
    table = hidden(diagnostics.load(tmp_path / "run"))
    assert list(table["layer"]) == ["w"]
    assert list(table["units"]) == [6] and list(table["distinct_units"]) == [distinct]


class Sequence(nn.Module):
    """A recurrent net of any kind and what reads it: by its output, or by its last state."""

    def __init__(self, kind: type[nn.RNNBase], depth: int, both_ways: bool, by_state: bool) -> None:
        super().__init__()
        self.first = nn.Linear(D, D)
        self.recurrent = kind(D, D, depth, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(2 * D if both_ways else D, 2)
        self.by_state = by_state

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.recurrent(self.first(x).tanh())
        if self.by_state:
            return self.head((state[0] if isinstance(state, tuple) else state)[-1])
        return self.head(out[:, -1])


def clone_cell(model: Sequence, layer: int, outgoing: bool) -> list[Tensor]:
    """Unit 3 of a layer gets the weights of unit 1; all incoming parameters of the layer."""
    net = model.recurrent
    incoming = [getattr(net, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    last = layer == net.num_layers - 1
    readers = [incoming[1], model.head.weight if last else getattr(net, f"weight_ih_l{layer + 1}")]
    with torch.no_grad():
        for parameter in incoming:
            gates = parameter.unflatten(0, (-1, D))
            gates[:, 3] = gates[:, 1]
        for weight in readers if outgoing else []:
            weight[:, 3] = weight[:, 1]
    return incoming


@pytest.mark.parametrize("by_state", [False, True])
@pytest.mark.parametrize(("depth", "layer"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("kind", [nn.LSTM, pytest.param(nn.GRU, marks=pytest.mark.exhaustive), nn.RNN])
@pytest.mark.parametrize("outgoing", [True, False])
def test_recurrent_units(
    kind: type[nn.RNNBase], depth: int, layer: int, by_state: bool, outgoing: bool, tmp_path: Path
) -> None:
    """Units alike in the weights of all gates and in every reader get the same gradient; in the first only, not."""
    torch.manual_seed(0)
    model = Sequence(kind, depth, False, by_state)
    incoming = clone_cell(model, layer, outgoing)
    found = recorded(model, tmp_path / "run")
    expected = {f"recurrent.weight_ih_l{at}": (D, D - (at == layer and outgoing), 1) for at in range(depth)}
    assert found == {"first.weight": (D, D, 1)} | expected
    gradient = incoming[0].grad
    assert gradient is not None
    gates = gradient.unflatten(0, (-1, D))
    assert torch.allclose(gates[:, 1], gates[:, 3], rtol=1e-4, atol=0) == outgoing


def test_units_of_two_directions(tmp_path: Path) -> None:
    """What reads both directions of the last layer is not told apart; the layer below is compared."""
    torch.manual_seed(0)
    model = Sequence(nn.GRU, 2, True, False)
    net = model.recurrent
    with torch.no_grad():
        for parameter in (net.weight_ih_l0_reverse, net.weight_hh_l0_reverse, net.bias_ih_l0_reverse):
            gates = parameter.unflatten(0, (-1, D))
            gates[:, 3] = gates[:, 1]
        net.bias_hh_l0_reverse.unflatten(0, (-1, D))[:, 3] = net.bias_hh_l0_reverse.unflatten(0, (-1, D))[:, 1]
        net.weight_hh_l0_reverse[:, 3] = net.weight_hh_l0_reverse[:, 1]
        for above in (net.weight_ih_l1, net.weight_ih_l1_reverse):
            above[:, D + 3] = above[:, D + 1]
    assert recorded(model, tmp_path / "run") == {
        "first.weight": (D, D, 1),
        "recurrent.weight_ih_l0": (D, D, 1),
        "recurrent.weight_ih_l0_reverse": (D, D - 1, 1),
    }


class Gated(nn.Module):
    """Hidden units that are products of one unit of each of two layers, in the ways people write them."""

    def __init__(self, way: str, same: tuple[str, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.one = way, way in ("chunked", "glu")
        self.up = nn.Linear(5, 12 if self.one else 6)
        self.gate = nn.Identity() if self.one else nn.Linear(5, 6)
        self.out = nn.Linear(6, 3)
        gate = (self.up.weight[6:], self.up.bias[6:]) if self.one else (self.gate.weight, self.gate.bias)
        sides = {"up": (self.up.weight[:6], self.up.bias[:6]), "gate": gate, "out": (self.out.weight.T,)}
        with torch.no_grad():
            for side in same:
                for each in sides[side]:
                    each[4] = each[1]

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "glu":
            return self.out(F.glu(self.up(x)))
        up, gate = self.up(x).chunk(2, dim=-1) if self.one else (self.up(x), self.gate(x))
        hidden = F.silu(gate) * up if self.way != "plain" else gate * up
        return self.out(hidden) + (up.sum(-1, keepdim=True) if self.way == "also elsewhere" else 0)


@pytest.mark.parametrize("way", ["plain", "two layers", "chunked", "glu"])
@pytest.mark.parametrize(
    ("same", "distinct"),
    [((), 6), (("up", "gate", "out"), 5), (("up", "out"), 6), (("gate", "out"), 6), (("up", "gate"), 6)],
)
def test_units_of_products(way: str, same: tuple[str, ...], distinct: int, tmp_path: Path) -> None:
    """Alike only where all three weights are."""
    found = units_of(Gated(way, same), tmp_path / "run")
    assert list(found.values()) == [(6, distinct)]


def test_factors_that_are_read_elsewhere_are_not_judged(tmp_path: Path) -> None:
    assert units_of(Gated("also elsewhere", ("up", "gate", "out")), tmp_path / "run") == {}


class ByHand(nn.Module):
    """An activation written as a product of the layer with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 3)
        with torch.no_grad():
            for each in (self.first.weight, self.first.bias, self.out.weight.T):
                each[4] = each[1]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.out(h * torch.sigmoid(h))


def test_a_layer_times_itself_keeps_its_units(tmp_path: Path) -> None:
    assert units_of(ByHand(), tmp_path / "run") == {"first.weight": (6, 5)}


def units_of(model: nn.Module, path: Path) -> dict[str, tuple[int, int]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(32, 5)
    with diagnostics.watch(model, optimizer, path, every=1) as monitor:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        monitor.step(loss, closure=lambda: model(x).square().mean())
    table = hidden(diagnostics.load(path))
    return {row.layer: (int(row.units), int(row.distinct_units)) for row in table.itertuples()}


@pytest.mark.parametrize(
    ("rows", "distinct"),
    [
        ([[1.0, 2.0]] * 3 + [[0.0, 1.0]] * 2, 2),
        ([[1.0, 2.0]] * 3 + [[0.0, 1.0]], 4),  # classes that never occur beside one that does
        ([[1.0, 2.0], [-1.0, -2.0]], 2),  # two classes that began at 0
        ([[0.0, 0.0]] * 3, 3),
        ([[math.nan, 1.0]] * 3, 3),
        ([[1.0, 2.0], [1.00000001, 2.0]], 1),
    ],
)
def test_outputs_count_as_alike_where_each_has_a_twin(rows, distinct):
    assert int(stats.distinct_outputs(stats.project(torch.tensor(rows)))) == distinct


def test_outputs_of_a_model_that_is_one_layer(tmp_path):
    """They have no module's name; the first update makes all there is of the weights."""
    model, draw = nn.Linear(3, 4), torch.Generator().manual_seed(0)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=1e9) as monitor:
        for _ in range(30):
            x = torch.randn(16, 3, generator=draw)
            optimizer.zero_grad()
            loss = (model(x).mean(1) - x[:, 0]).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    (alarm,) = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert (alarm.kind, alarm.cause, alarm.layers) == ("symmetry", "zero-initialization", ("outputs",))
    assert alarm.summary.startswith("Of the 4 outputs of the model only 1 is distinct")
