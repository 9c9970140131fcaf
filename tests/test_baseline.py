"""What a linear model of the same inputs would do, and what it tells of a network that does worse."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn

import diagnostics
from diagnostics import stats
from diagnostics.monitor.baseline import Baseline, given
from diagnostics.rules._below_linear import below_linear, rival
from diagnostics.rules._verdict import verdict
from diagnostics.run import Run, summarize

ANY = 1e9  # times the unwatched time: what is measured must not depend on how busy the machine is
LOGITS = next(form for form in stats.FORMS if form.name == "cross-entropy of logits" and form.classes == 1)
SQUARED = next(form for form in stats.FORMS if form.name == "squared error")
KNOWN = torch.tensor(True)


def targets(form: stats.Form, outputs: torch.Tensor, labels: torch.Tensor) -> stats.Targets:
    outputs = outputs.requires_grad_()
    loss = F.mse_loss(outputs, labels) if form is SQUARED else F.cross_entropy(outputs, labels)
    (gradient,) = torch.autograd.grad(loss, outputs)
    read = form.read(outputs, gradient)
    assert read is not None
    return read


def test_the_fit_is_scikit_learns_ridge() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 7) * torch.logspace(-2, 3, 7) + 5, torch.randn(50, 2)
    x[:, 3] = 1.0  # a constant feature, of no use
    seen = stats.moments(torch.cat([x, y], 1), crossed=True)
    ours = stats.predicted(seen, stats.fitted(seen, 7), x)
    scaled = StandardScaler().fit_transform(x.double().numpy())
    theirs = Ridge(alpha=7).fit(scaled, y.numpy()).predict(scaled)
    assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["real", "binary"])
def test_an_example_is_of_the_same_half_in_every_batch(kind) -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 12) if kind == "real" else torch.randint(0, 2, (2000, 12)).float()
    half, order = stats.halves(x), torch.randperm(2000)
    assert (stats.halves(x[order]) == half[order]).all()
    assert half.float().mean() == pytest.approx(0.5, abs=0.05)


def test_wide_inputs_are_averaged_and_tokens_counted() -> None:
    images = torch.rand(3, 3, 16, 16)
    assert stats.features(images).mean() == pytest.approx(float(images.mean()), rel=1e-3)
    assert stats.features(images).shape[1] < images[0].numel()
    assert torch.equal(stats.features(images[:, 0, 0]), images[:, 0, 0])
    counts = stats.features(torch.tensor([[5, 5, 2], [0, 1, 2]]))
    assert counts[0, 5] == 2 and counts[0, 2] == 1 and counts.sum() == 6


def test_an_answer_as_long_as_the_example_is_not_compared() -> None:
    """It may be a reconstruction, which a bottleneck is meant to spoil."""
    x = torch.rand(8, 6)
    assert given(x, torch.rand(8, 6)) is None and given(x, torch.rand(4, 6)) is None
    assert given(x, torch.rand(8, 100)) is None and given(x, torch.rand(8, 1)) is not None
    assert given(torch.rand(8, 1), torch.rand(8, 1)) is not None


def test_it_comes_to_the_noise_of_a_linear_relation() -> None:
    torch.manual_seed(0)
    weights, baseline, losses = torch.randn(5, 2), Baseline(), []
    for _ in range(60):
        x = torch.randn(64, 5)
        y = x @ weights + 3 + 0.5 * torch.randn(64, 2)
        losses.append(baseline.loss(stats.features(x), targets(SQUARED, torch.zeros(64, 2), y), KNOWN))
    assert losses[0] is None
    late = float(torch.stack([loss for loss in losses[30:] if loss is not None]).mean())
    assert late == pytest.approx(0.25, rel=0.1)


def test_inputs_of_another_width_begin_anew() -> None:
    torch.manual_seed(0)
    baseline, x = Baseline(), torch.randn(64, 5)
    for width in (5, 5, 3, 3):
        rows = stats.features(x[:, :width])
        loss = baseline.loss(rows, targets(SQUARED, torch.zeros(64, 1), x[:, :1]), KNOWN)
    assert loss is not None and float(loss) < 0.2


def test_examples_that_come_again_are_not_known_by_heart() -> None:
    """Twenty examples of sixty features, whose labels are drawn: a fit that had seen them would make no mistake."""
    torch.manual_seed(0)
    x, y, baseline = torch.randn(20, 60), torch.randint(0, 2, (20,)), Baseline()
    losses = [baseline.loss(stats.features(x), targets(LOGITS, torch.zeros(20, 2), y), KNOWN) for _ in range(40)]
    assert float(losses[-1]) > 0.6  # of log 2


@pytest.mark.parametrize("form", stats.FORMS, ids=lambda form: f"{form.name} {form.classes} {form.times.__name__}")
def test_every_form_has_outputs_for_an_estimate_of_its_targets(form) -> None:
    """Whose error falls as the estimate comes nearer to what is true."""
    if form.classes is not None:
        true = F.one_hot(torch.tensor([0, 1, 2, 1]), 3).float()
    else:
        true = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    right, wrong = (form.error(form.link(each, 3.0), true) for each in (true, 1 - true))
    assert torch.isfinite(right) and right < wrong


def trained(
    path, model: nn.Module, updates: int = 500, rate: float = 1e-2, shuffle: bool = False, wrong: bool = False
) -> Run:
    """`shuffle`: labels, anew in each batch; `wrong`: once, so that they can be known by heart."""
    images, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
    labels = labels[torch.randperm(len(labels))] if wrong else labels
    images = (images / 16).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            at = torch.randint(0, len(images), (32,))
            y = labels[at[torch.randperm(32)]] if shuffle else labels[at]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[at]), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return diagnostics.load(path)


def told(run: Run) -> list[tuple[str, str, str | None]]:
    return [(each.severity, each.kind, each.cause) for each in diagnostics.diagnose(run).findings]


@pytest.mark.exhaustive
def test_a_network_that_loses_its_inputs_on_the_way_is_behind(tmp_path) -> None:
    torch.manual_seed(0)
    run = trained(tmp_path, nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.95), nn.Linear(32, 10)), rate=1e-3)
    assert ("warning", "plateau", "below-linear") in told(run)


@pytest.mark.exhaustive
def test_one_that_learns_is_ahead(tmp_path) -> None:
    torch.manual_seed(0)
    run = trained(tmp_path, nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    found = rival(run, 250)
    assert found is not None and found.network > found.linear > 0.7
    assert told(run) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("shuffle", [True, False])
def test_one_that_learned_nothing_is_told_whether_there_was_something_to_learn(shuffle, tmp_path) -> None:
    class Deaf(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[:, torch.randperm(64)])

    torch.manual_seed(0)
    run = trained(tmp_path, nn.Linear(64, 10) if shuffle else Deaf(64, 10), rate=1e-3, shuffle=shuffle)
    (found,) = [each for each in diagnostics.diagnose(run).findings if each.cause == "nothing-learned"]
    assert ("learns nothing" if shuffle else "the targets follow from the inputs") in found.summary


@pytest.mark.exhaustive
def test_wrong_targets_that_are_known_by_heart_a_little_are_to_be_looked_at_first(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
    run = trained(tmp_path, model, updates=2000, rate=3e-3, wrong=True)
    (found,) = [each for each in diagnostics.diagnose(run).findings if each.kind == "plateau"]
    assert (found.severity, found.cause, found.last_step) == ("info", "hardly-learned", None)
    assert "learns nothing, so look at the targets first" in found.summary
    assert "does each target belong to its input" in found.remedies[0]
    said = verdict(summarize(run, diagnostics.diagnose(run)), "finished")
    assert said.sign == "open" and said.headline.startswith("No alarm, and hardly anything learned: ")


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize("standardized", [False, True])
def test_inputs_far_from_zero_make_a_ravine_that_hidden_units_have_not_undone(standardized, tmp_path) -> None:
    """Six deviations from zero, which they may undo: a linear model that does better says that they have not."""
    torch.manual_seed(0)
    x = torch.randn(2000, 4)
    y = (x @ torch.tensor([1.0, -1.0, 0.5, 0.0]) + torch.tanh(2 * x[:, 3]) + 0.1 * torch.randn(2000)) / 1.8
    if not standardized:
        x = (torch.tensor([300.0, 100.0, 2.0, 2.0]) + x) / torch.tensor([304.0, 104.0, 6.0, 6.0])
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=100) as monitor:
        for _ in range(500):
            at = torch.randint(2000, (50,))

            def mean_squared_error(at=at) -> torch.Tensor:
                return F.mse_loss(model(x[at]).squeeze(1), y[at])

            optimizer.zero_grad()
            loss = mean_squared_error()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=mean_squared_error)
    expected = [] if standardized else [("warning", "ravine", "uncentered-inputs")]
    assert told(diagnostics.load(tmp_path)) == expected


STEPS = np.arange(1, 1001)
MEASURED = STEPS % 10 == 0


@pytest.mark.parametrize(
    ("network", "severity"),
    [
        (np.full(1000, 0.2), "warning"),
        (np.full(1000, 0.6), None),  # more than half of what a linear model explains
        (0.4 * (STEPS / 1000) ** 3, "info"),  # it is catching up
        (np.where(STEPS < 950, 0.2, 0.9), None),  # it has caught up
    ],
)
def test_an_alarm_is_of_a_network_that_stays_far_behind(network, severity) -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(1000)
    told = {"linear_loss": 0.1 + noise, "constant_loss": 1.0}
    table = pd.DataFrame({"step": STEPS, "loss": 1 - network + noise, **told})
    table.loc[~MEASURED, [*told]] = np.nan
    found = below_linear("plateau", Run.from_frames({"name": "r"}, {"scalars": table}))
    assert (found.severity if found else None) == severity


def test_nothing_is_said_where_a_linear_model_has_little_to_offer() -> None:
    told = {"loss": 1.0, "linear_loss": 0.95, "constant_loss": 1.0}
    table = pd.DataFrame({"step": STEPS, **{name: np.full(1000, value) for name, value in told.items()}})
    assert below_linear("plateau", Run.from_frames({"name": "r"}, {"scalars": table})) is None
