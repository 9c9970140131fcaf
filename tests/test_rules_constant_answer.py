"""The loss of one answer to everything: against dummy models and direct minimization, and what runs that get no further
are told."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.dummy import DummyRegressor
from torch import nn

import diagnostics
from diagnostics import stats
from diagnostics.metrics import TABLES
from diagnostics.run import RunWriter

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def least(loss, *shape):
    """The smallest loss of any constant answer, by minimization."""
    answer = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=200, tolerance_grad=1e-10, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        value = loss(answer)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(answer).item()


def classes(n=20_000, count=5):
    torch.manual_seed(0)
    return torch.multinomial(torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0]), n, replacement=True), count


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_of_classes_it_is_the_least_cross_entropy_of_a_constant(smoothing):
    t, count = classes()
    t[::7] = -100
    expected = least(lambda z: F.cross_entropy(z.expand(len(t), count), t, label_smoothing=smoothing), count)
    seen = stats.classes(t, count, smoothing=smoothing)
    assert float(seen.constant_loss(seen)) == pytest.approx(expected, rel=1e-3)


def test_of_numbers_it_is_what_a_dummy_regressor_has():
    torch.manual_seed(0)
    t = torch.randn(4000, 3) * torch.tensor([1.0, 20.0, 0.1]) + 100
    dummy, (first, second) = DummyRegressor().fit(torch.zeros(4000, 1), t), t.split([1500, 2500])
    expected = F.mse_loss(torch.from_numpy(dummy.predict(torch.zeros(1500, 1))), first.double())
    found = stats.squared(first).constant_loss(stats.squared(first).merged(stats.squared(second)))
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_of_shares_it_is_the_least_binary_cross_entropy_of_a_constant():
    torch.manual_seed(0)
    t = torch.bernoulli(torch.tensor([0.5, 0.1]).expand(4000, 2))
    expected = least(lambda z: F.binary_cross_entropy_with_logits(z.expand_as(t), t.double()), 2)
    seen = stats.bernoulli(t)
    assert float(seen.constant_loss(seen)) == pytest.approx(expected, rel=1e-3)


def test_images_have_one_constant_and_few_of_their_rows_are_enough():
    torch.manual_seed(0)
    t = torch.randn(64, 3, 64, 64)
    seen = stats.squared(t)
    assert float(seen.constant_loss(seen)) == pytest.approx(1, abs=0.02) and float(seen.seen.count) <= 1 << 16


@pytest.mark.parametrize("targets", [stats.squared(torch.randn(50)), stats.squared(torch.ones(5000))])
@pytest.mark.filterwarnings("ignore")
def test_too_few_targets_or_ones_that_never_differ_tell_nothing(targets):
    assert targets.constant_loss(targets).isnan()


def test_few_targets_of_many_classes_tell_nothing():
    torch.manual_seed(0)
    few, many = (stats.classes(torch.randint(1000, (count,)), 1000) for count in (2000, 20_000))
    assert few.constant_loss(few).isnan() and not many.constant_loss(many).isnan()


# -- as it is recorded ------------------------------------------------------------------------------------------------


def data(n=512):
    torch.manual_seed(0)
    x = torch.randn(n, 10)
    return x, (x[:, :3].sum(1) > 0).long()


def trained(path, loss_of, updates=150, batch=32, outputs=2, lr=0.05):
    """`loss_of(outputs, chosen)`."""
    x, _ = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, outputs))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    draw = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY, every=5) as monitor:
        for _ in range(updates):
            chosen = torch.randperm(len(x), generator=draw)[:batch].sort().values

            def closure(chosen=chosen):
                return loss_of(model(x[chosen]), chosen)

            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=closure)
    return diagnostics.load(path)


T = data()[1]
ROWS = torch.arange(32) % 2  # of a batch whose first half is real and whose second is not


@pytest.mark.parametrize(
    ("loss_of", "batch", "expected"),
    [
        (lambda z, chosen: F.cross_entropy(z, T[chosen]), 32, 0.69),
        (lambda z, chosen: nn.NLLLoss()(z.log_softmax(1), T[chosen]), 32, 0.69),
        (lambda z, chosen: nn.BCEWithLogitsLoss()(z[:, 0], T[chosen].float()), 32, 0.69),
        (lambda z, chosen: nn.MSELoss()(z[:, 0], T[chosen].float()), 32, 0.25),
        (lambda z, chosen: F.cross_entropy(z, T), 512, 0.69),  # all data at every update: the targets never change
        (lambda z, chosen: F.cross_entropy(z, ROWS), 32, None),  # these do not come from the data
        (lambda z, chosen: F.cross_entropy(z, T[chosen]) + z.square().mean(), 32, None),
        (lambda z, chosen: F.cross_entropy(z, T[chosen], weight=torch.tensor([1.0, 5.0])), 32, None),
        (lambda z, chosen: F.cross_entropy(z, T[chosen], reduction="none").mean(), 32, None),
        (lambda z, chosen: F.mse_loss(z, torch.zeros(32, 2)), 32, None),  # a residual that must vanish
        (lambda z, chosen: F.l1_loss(z[:, 0], T[chosen].float()), 32, None),
    ],
)
def test_it_is_recorded_where_the_loss_is_one_comparison_with_data(loss_of, batch, expected, tmp_path):
    run = trained(tmp_path / "run", loss_of, 80, batch)
    values = run.table("scalars")["constant_loss"].dropna()
    assert (expected is None) == values.empty
    assert expected is None or abs(values.mean() / expected - 1) < 0.05
    assert not len(run.table("events").query("kind == 'measurement-failed'"))


def test_a_model_that_computes_its_loss_needs_no_closure(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 2)

        def forward(self, x, t):
            return F.cross_entropy(self.layer(x), t)

    x, t = data()
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY, every=5) as monitor:
        for update in range(40):
            optimizer.zero_grad()
            loss = model(x[update * 10 : update * 10 + 64], t[update * 10 : update * 10 + 64])
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    values = diagnostics.load(tmp_path / "run").table("scalars")["constant_loss"].dropna()
    assert len(values) and 0.6 < values.mean() < 0.8


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [True, False])
def test_labels_of_other_samples(shuffled, tmp_path):
    order = torch.Generator().manual_seed(3)

    def loss_of(z, chosen):
        return F.cross_entropy(z, T[chosen])

    def apart(z, chosen):  # a second loader with an order of its own
        order.manual_seed(int(chosen[0]) * 1000 + int(chosen[-1]))
        return F.cross_entropy(z, T[torch.randint(len(T), (len(chosen),), generator=order)])

    run = trained(tmp_path / "run", apart if shuffled else loss_of, 400)
    (finding,) = diagnostics.diagnose(run).alarms if shuffled else [None]
    if not shuffled:
        assert not diagnostics.diagnose(run).alarms
        return
    assert (finding.kind, finding.cause, finding.severity) == ("plateau", None, "warning")
    assert -0.1 < finding.evidence["R squared"] < 0.02


def record(path, levels, rates=None, constant=1.0, **meta):
    """A run of given losses; the rules are given numbers here, not trainings."""
    draw = torch.Generator().manual_seed(0)
    with_noise = [level * (1 + 0.01 * float(torch.randn((), generator=draw))) for level in levels]
    writer = RunWriter(path, {"optimizer": "SGD", "closure": True, "hyperparameters": [{"lr": 0.1}], **meta})
    for step, loss in enumerate(with_noise, 1):
        row = {"loss": loss, "lr": 0.1 if rates is None else rates[step - 1], "grad_norm": 1.0}
        measured = {"constant_loss": constant, "update_norm": 0.1, "weight_norm": 1.0} if step % 10 == 0 else {}
        writer.append("scalars", step, row | measured)
        if measured:
            norms = {"grad_norm": [1.0], "weight_norm": [1.0], "update_norm": [0.1]}
            writer.append_many("layers", step, ["layer.weight"], norms)
    writer.close("finished")
    return diagnostics.load(path)


def found(run):
    return [(f.severity, f.kind) for f in diagnostics.diagnose(run).findings if f.kind == "plateau"]


@pytest.mark.parametrize(
    ("levels", "rates", "constant", "severity"),
    [
        ([1.0] * 400, None, 1.0, "warning"),
        ([30.0] * 400, None, 1.0, "warning"),  # worse than a constant
        ([50.0] * 40 + [1.0] * 360, None, 1.0, "warning"),  # most of the first loss is gone, and nothing was learned
        ([0.985] * 400, None, 1.0, "info"),  # little is learned, as where labels are noisy
        ([1.0] * 400, None, float("nan"), "info"),
        ([1.0] * 90, None, 1.0, "info"),  # too early to tell
        ([1.0] * 400, [0.1 * min(1, step / 300) for step in range(400)], 1.0, "info"),  # the rate has just arrived
        ([1.0] * 250 + [0.3] * 150, None, 1.0, "info"),  # it did start
    ],
)
def test_how_much_is_nothing(levels, rates, constant, severity, tmp_path):
    assert found(record(tmp_path / "run", levels, rates, constant)) == [(severity, "plateau")]


def test_it_gives_way_to_an_alarm_that_says_why(tmp_path):
    run = trained(tmp_path / "run", lambda z, chosen: F.cross_entropy(z, T[chosen]), 300, lr=1e-9)
    assert run.table("scalars")["constant_loss"].median() <= run.table("scalars")["loss"].median()
    assert [finding.kind for finding in diagnostics.diagnose(run).alarms] == ["lr-too-small"]


def test_it_is_in_the_vocabulary():
    assert "constant_loss" in TABLES["scalars"].names
