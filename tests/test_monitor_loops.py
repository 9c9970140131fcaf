"""What is recorded in the loops people really write, against the truth computed by hand."""

import copy
import io
import json
import math
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor import pairs, resuming
from diagnostics.run import other_weights, summarize


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def batch(step: int, rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def train(monitor: Any, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        monitor.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y))


def norm(model: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


def events(run: Any) -> list[str]:
    """What happened, without remarks on how curvature was measured, and on a busy machine how seldom."""
    return [kind for kind in run.table("events")["kind"] if kind not in ("curvature-note", "budget")]


def test_plain_loop(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    truth, previous = [], [p.detach().clone() for p in model.parameters()]
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=3) as monitor:
        for step in range(7):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()  # before monitor.step: the rate recorded is the one the update used
            weights = [p.detach().clone() for p in model.parameters()]
            moved = math.sqrt(sum(float((p - q).square().sum()) for p, q in zip(weights, previous, strict=True)))
            weight = math.sqrt(sum(float(p.square().sum()) for p in weights))
            previous = weights
            truth.append((loss.item(), rate, norm(model), moved, weight))
            monitor.step(loss)
            monitor.log(accuracy=step / 10)
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    loss, rate, gradient, moved, weight = map(list, zip(*truth, strict=True))
    assert list(scalars["loss"]) == loss
    assert list(scalars["lr"]) == pytest.approx(rate, rel=1e-12)
    assert list(scalars["grad_norm"]) == pytest.approx(gradient, rel=1e-5)
    assert list(scalars["accuracy"]) == [step / 10 for step in range(7)]
    for row in (0, 1, 2, 3, 5, 6):  # measured: 1, 2, 3, 6; their partners: 4, 7
        assert scalars["update_norm"][row] == pytest.approx(moved[row], rel=1e-4)
        assert scalars["weight_norm"][row] == pytest.approx(weight[row], rel=1e-5)
    assert math.isnan(scalars["update_norm"][4])
    assert list(run.matrix("layers", "grad_norm")[0]) == [1, 2, 3, 6]
    assert run.meta["loss_path"] == "cross_entropy" and run.meta["linear_model"] is False
    assert events(run) == ["no-closure"]
    assert set(run.table("units")["layer"]) == {"1"}  # from the training forward, as there is no closure


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_a_loss_with_dimensions_is_measured_as_the_number_that_it_is(shape: tuple[int, ...], tmp_path: Path) -> None:
    def recorded(name: str, shape: tuple[int, ...]) -> Any:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options: dict[str, Any] = {"every": 2, "curvature_every": 4, "budget": 1e9}
        with diagnostics.watch(model, optimizer, tmp_path / name, **options) as monitor:
            for step in range(8):
                x, y = batch(step)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y).reshape(shape)
                loss.backward()
                optimizer.step()
                monitor.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y).reshape(shape))
        return diagnostics.load(tmp_path / name)

    run, plain = recorded("dimensions", shape), recorded("plain", ())
    assert events(run) == [] and len(run.table("units")) > 0
    assert run.table("scalars")["overshoot"].notna().any()
    for table in ("scalars", "units", "layers"):
        given, without = run.table(table), plain.table(table)
        assert [name for name in given if name != "time" and not given[name].equals(without[name])] == []


@pytest.mark.parametrize("kept", [pairs.SAMPLE, 50])
def test_cosines_overshoot_and_projection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Of a model larger than what is kept of a gradient, slope and overshoot are still those of all of it."""
    monkeypatch.setattr(pairs, "SAMPLE", kept)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    gradients, updates, slopes, ratios = [], [], [], []
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2, curvature_every=4, budget=1e9) as monitor:
        for step in range(4):
            x, y = batch(step)
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double())
            optimizer.step()
            updates.append(
                torch.cat(
                    [(p.detach() - q).reshape(-1) for p, q in zip(model.parameters(), before, strict=True)]
                ).double()
            )
            slope = float(gradients[-1] @ updates[-1])
            slopes.append(slope)
            with torch.no_grad():
                after = F.cross_entropy(model(x), y)
            ratios.append(-(after.item() - loss.item() - slope) / slope)
            monitor.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y))
    scalars = diagnostics.load(tmp_path / "run").table("scalars")
    cosine = lambda a, b: float(a @ b / a.norm() / b.norm())  # noqa: E731
    margin = 0.3 if kept == 50 else 1e-5
    assert scalars["gradient_cosine"][1] == pytest.approx(cosine(gradients[0], gradients[1]), abs=margin)
    assert scalars["update_cosine"][2] == pytest.approx(cosine(updates[1], updates[2]), abs=margin)
    for row in (0, 1, 3):
        assert scalars["slope"][row] == pytest.approx(slopes[row], rel=1e-4)
        assert scalars["overshoot"][row] == pytest.approx(ratios[row], rel=1e-3)
    assert math.isnan(scalars["overshoot"][2])
    assert math.isnan(scalars["top_projection"][0]) and list(scalars["top_origin"])[1:] == [1, 1, 1]


def test_sparse_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4, sparse=True), nn.Flatten())
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2, budget=1e9) as monitor:
        for _ in range(4):
            loss = model(torch.randint(20, (8, 3))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    scalars = diagnostics.load(tmp_path / "run").table("scalars")
    assert scalars["grad_norm"].notna().all() and scalars["gradient_cosine"].notna().any()
    assert (scalars["slope"].dropna() < 0).all() and scalars["slope"].notna().any()


class Signs(torch.optim.Optimizer):
    """Writes to the gradients, as older optimizers do."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(1e-3 * p.grad.sign_())


def test_no_slope_of_a_gradient_that_the_optimizer_wrote_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SAMPLE", 50)
    model = small()
    optimizer = Signs(model.parameters())
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2, budget=1e9) as monitor:
        train(monitor, model, optimizer, range(4))
    scalars = diagnostics.load(tmp_path / "run").table("scalars")
    assert len(scalars) == 4 and scalars["update_norm"].notna().any()
    assert scalars["slope"].isna().all() and scalars["overshoot"].isna().all()


def test_a_step_that_calls_its_base_class_is_one_update(tmp_path: Path) -> None:
    class Halved(torch.optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad.mul_(0.5)
            return super().step(closure)

    model = small()
    torch.optim.SGD(model.parameters(), lr=0.5)  # torch hooks a class's step when the first of its optimizers is made
    optimizer = Halved(model.parameters(), lr=0.5)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=1e9) as monitor:
        train(monitor, model, optimizer, range(4))
    scalars = diagnostics.load(tmp_path / "run").table("scalars")
    assert list(scalars["step"]) == [1, 2, 3, 4] and scalars["loss"].notna().all()
    np.testing.assert_allclose(scalars["update_norm"], 0.5 * scalars["grad_norm"], rtol=1e-4)


def test_overshoot_with_dropout_uses_the_masks_of_the_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # so small that the loss is linear along the update
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2, budget=1e9) as monitor:
        train(monitor, model, optimizer, range(6))
    ratio = diagnostics.load(tmp_path / "run").table("scalars")["overshoot"].dropna()
    assert len(ratio) == 3
    assert ratio.abs().max() < 0.05  # other masks would give a difference of losses without any relation to g'u


def test_accumulation_and_clipping(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    truth = []
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2) as monitor:
        for step in range(4):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            total = 0.0
            for micro in range(3):
                x, y = batch(10 * step + micro)
                loss = F.cross_entropy(model(x), y) / 3
                loss.backward()
                total += loss.item()
            whole = norm(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            truth.append((total, whole, norm(model)))
            optimizer.step()
            monitor.step(total)
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    loss, whole, clipped = map(list, zip(*truth, strict=True))
    assert list(scalars["loss"]) == loss
    assert list(scalars["grad_norm_unclipped"]) == pytest.approx(whole, rel=1e-5)
    assert list(scalars["grad_norm"]) == pytest.approx(clipped, rel=1e-5)
    assert list(scalars["micro_batches"]) == [3, 3, 3, 3]
    assert list(scalars["carried_grad_norm"]) == [0, 0, 0, 0]
    assert scalars["overshoot"].isna().all()
    assert "gradients-cleared" not in set(run.table("events")["kind"])


def test_forgotten_zero_grad_is_carried(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    truth = []
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for step in range(4):
            x, y = batch(step)
            truth.append(0.0 if step == 0 else float(model[2].bias.grad.norm()))
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    carried = diagnostics.load(tmp_path / "run").table("scalars")["carried_grad_norm"]
    assert list(carried) == pytest.approx(truth, rel=1e-6)


def test_gradients_that_another_loss_left_and_zero_grad_removed_are_not_carried(tmp_path: Path) -> None:
    """As in a discriminator, through which the generator's loss goes before its own turn."""
    model, other = small(), nn.Linear(6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
            (-F.cross_entropy(model(other(x)), y)).backward()
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("scalars")["carried_grad_norm"]) == [0, 0, 0, 0]
    assert list(run.table("events")["kind"]).count("gradients-cleared") == 1


@pytest.mark.parametrize("given", [True, False], ids=["scaler given", "scaler not given"])
@pytest.mark.parametrize("fused", [False, True], ids=["ordinary", "fused"])
def test_gradient_scaler(fused: bool, given: bool, tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    truth = []
    watched = diagnostics.watch(model, optimizer, tmp_path / "run", every=2, scaler=scaler if given else None)
    with watched as monitor:
        for step in range(5):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            overflow = math.inf if step == 2 else 1.0
            scale = scaler.get_scale()
            scaler.scale(loss * overflow if step == 2 else loss).backward()
            truth.append(norm(model) / scale if step != 2 else math.nan)
            scaler.step(optimizer)
            scaler.update()
            monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    assert list(scalars["step"]) == [1, 2, 3, 4, 5]
    assert list(scalars["grad_norm"]) == pytest.approx(truth, rel=1e-4, nan_ok=True)
    unclipped = scalars["grad_norm_unclipped"].to_numpy()[[1, 3, 4]]
    assert unclipped == pytest.approx([truth[1], truth[3], truth[4]], rel=1e-4)
    assert scalars["update_norm"][2] == 0
    assert [kind for kind in events(run) if kind != "no-closure"] == ["skipped-step"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    truth = []
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for step in range(3):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.to(dtype)).float(), y)
            loss.backward()
            truth.append(norm(model))
            optimizer.step()
            monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("scalars")["grad_norm"]) == pytest.approx(truth, rel=1e-5)
    assert events(run) == ["no-closure"]


def test_lbfgs(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    x, y = batch(0)
    alone = copy.deepcopy(model)
    other = torch.optim.LBFGS(alone.parameters(), lr=0.5, max_iter=4)

    def closure_of(net: nn.Module, opt: Any) -> Any:
        def closure() -> torch.Tensor:
            opt.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            return loss

        return closure

    truth = []
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(3):
            closure_of(alone, other)()
            truth.append(norm(alone))
            other.step(closure_of(alone, other))
            loss = optimizer.step(closure_of(model, optimizer))
            monitor.step(loss, lambda: F.cross_entropy(model(x), y))
    run = diagnostics.load(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
    assert list(run.table("scalars")["grad_norm"]) == pytest.approx(truth, rel=1e-5)
    assert len(run.table("curvature")) > 0


def test_two_optimizers_and_two_monitors(tmp_path: Path) -> None:
    model = small()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=1e-3)]
    monitors = [
        diagnostics.watch(model, o, tmp_path / f"run{i}", every=1, budget=1e9) for i, o in enumerate(optimizers)
    ]
    truth = []
    for step in range(5):
        x, y = batch(step)
        model.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        truth.append([norm(model[0]), norm(model[2])])
        for optimizer, monitor in zip(optimizers, monitors, strict=True):
            optimizer.step()
            monitor.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y))
    for i, monitor in enumerate(monitors):
        monitor.close()
        run = diagnostics.load(tmp_path / f"run{i}")
        assert list(run.table("scalars")["grad_norm"]) == pytest.approx([row[i] for row in truth], rel=1e-5)
        assert events(run) == []  # the other optimizer's parameters move: nothing is wrong with them
        assert run.table("units").groupby("step").size().eq(1).all()
        assert list(run.table("scalars")["micro_batches"]) == [1] * 5


def test_a_watched_model_copies_and_pickles_clean(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
        copied = copy.deepcopy(model)
        pickled = pickle.loads(pickle.dumps(model))
        buffer = io.BytesIO()
        torch.save(model, buffer)
        copy.deepcopy(optimizer), pickle.dumps(optimizer)
        for other in (copied, pickled):
            F.cross_entropy(other(x), y).backward()  # a copy that trains is not the watched model
        loss.detach()
    run = diagnostics.load(tmp_path / "run")
    assert len(run.table("scalars")) == 4
    assert run.table("units").groupby("step").size().eq(1).all()


def test_watched_again_after_closing(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for part in range(2):
        with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
            train(monitor, model, optimizer, range(3 * part, 3 * part + 3))
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("scalars")["step"]) == [1, 2, 3, 4, 5, 6]
    assert events(run) == ["resumed"]


def trained_into(run_dir: Path, model: nn.Module, **options) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, run_dir, **options) as monitor:
        train(monitor, model, optimizer, range(3))
    return model


def scaled(scale: float) -> nn.Module:
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def seeded(seed: int) -> nn.Module:
    model = small()
    torch.manual_seed(seed)
    for layer in (model[0], model[2]):
        layer.reset_parameters()
    return model


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_another_model_in_the_directory_of_a_run_is_told(tmp_path: Path) -> None:
    """As when a script is started twice: the run is continued, as promised, but not in silence."""
    trained_into(tmp_path / "run", small())
    with pytest.warns(RuntimeWarning, match="give it another run_dir") as warned:
        trained_into(tmp_path / "run", scaled(3.0))
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained_into(tmp_path / "run", scaled(9.0), first_step=4)  # meant
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("scalars")["step"]) == [1, 2, 3, 4, 5, 6]
    assert len(others(run)) == 1 and "another run_dir" in others(run)[0]


def others(run: Any) -> list[str]:
    told = run.table("events")
    return list(told.loc[other_weights(told), "message"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(("seed", "said"), [(0, "they are those it had at its beginning"), (1, "values looked at")])
def test_a_short_training_begun_anew_is_told_by_its_weights(seed: int, said: str, killed: bool, tmp_path: Path) -> None:
    """The norm is nearly the same; behind a kill it is all there is of another seed."""
    beginning = seeded(0)
    trained_into(tmp_path / "run", copy.deepcopy(beginning))
    if killed:
        about = tmp_path / "run" / "run.json"
        begun = {"step": 0, "values": resuming.sample(list(beginning.parameters()))}
        about.write_text(json.dumps(json.loads(about.read_text()) | {"weights": begun}))
    trained_into(tmp_path / "run", seeded(seed))
    run = diagnostics.load(tmp_path / "run")
    found = others(run)
    said = said if killed or seed else "values looked at"
    assert [said in each for each in found] == ([] if killed and seed else [True])
    assert summarize(run)["other_weights"] == (4 if found else 0)


def test_weights_loaded_after_watch_and_rounded_by_their_checkpoint_go_on(tmp_path: Path) -> None:
    trained = trained_into(tmp_path / "run", small())
    kept = {name: value.bfloat16() for name, value in trained.state_dict().items()}
    model = seeded(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        model.load_state_dict(kept)
        train(monitor, model, optimizer, range(3, 6))
    assert others(diagnostics.load(tmp_path / "run")) == []


def test_step_called_wrongly(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(step: int) -> torch.Tensor:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    monitor = diagnostics.watch(model, optimizer, tmp_path / "run")
    monitor.step(update(0))
    with pytest.warns(RuntimeWarning, match="no update"):
        monitor.step(1.0)
    monitor.step(1.0)  # told once
    update(1)
    with pytest.warns(RuntimeWarning, match="not called"):
        update(2)
    update(3)
    monitor.close()
    monitor.step(1.0)  # after closing: nothing
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    assert list(scalars["step"]) == [1, 2, 3, 4]
    assert scalars["loss"].isna().tolist() == [False, True, True, True]
    assert scalars["grad_norm"].notna().all()
    assert sorted(events(run)) == ["no-closure", "step-missing", "step-without-update"]


def test_parameters_added_later(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    model[0].requires_grad_(False)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for step in range(4):
            if step == 2:
                model[0].requires_grad_(True)
                optimizer.add_param_group({"params": model[0].parameters()})
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    _, names, norms = run.matrix("layers", "grad_norm")
    first = norms[:, list(names).index("0.weight")]
    assert torch.tensor(first).isnan().tolist() == [True, True, False, False]
    assert "layers-changed" in events(run) and "not-in-optimizer" not in events(run)
    assert all(layer["optimized"] for layer in run.meta["layers"])


@pytest.mark.parametrize("told", [True, False])
def test_a_layer_that_is_replaced_in_the_middle(told: bool, tmp_path: Path) -> None:
    """`told`: the optimizer gets the new one's parameters in the old one's place."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2, budget=1e9) as monitor:
        train(monitor, model, optimizer, range(5))
        model[2] = nn.Linear(16, 3)
        if told:
            optimizer.param_groups[0]["params"][:] = model.parameters()
        train(monitor, model, optimizer, range(5, 12))
    run = diagnostics.load(tmp_path / "run")
    assert events(run) == ["layers-changed", *([] if told else ["stale-parameters"])]
    last = run.table("layers").query("layer == '2.weight'").iloc[-1]
    assert last["weight_norm"] == pytest.approx(float(model[2].weight.detach().norm()), rel=0.05)
    assert (last["update_norm"] > 0) == told


class Named(torch.optim.SGD):
    """Calls its closure something else, and takes more."""

    def step(self, evaluate: Any = None, scale: float = 1.0) -> Any:
        loss = evaluate() if callable(evaluate) else None
        super().step()
        return loss


@pytest.mark.parametrize("called", [lambda step, f: step(f), lambda step, f: step(f, 2.0), lambda step, f: step(3.0)])
def test_a_step_is_called_as_it_was(called: Any, tmp_path: Path) -> None:
    model = small()
    optimizer = Named(model.parameters(), lr=0.1)
    x, y = batch(0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        closure()
        called(optimizer.step, closure)
        monitor.step(1.0)
    assert diagnostics.load(tmp_path / "run").table("scalars")["grad_norm"][0] > 0


def test_forgotten_and_stale_parameters(tmp_path: Path) -> None:
    def run_with(model: nn.Module, optimizer: Any, folder: str) -> Any:
        with diagnostics.watch(model, optimizer, tmp_path / folder) as monitor:
            for step in range(6):
                x, y = batch(step)
                model.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                monitor.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y))
        table = diagnostics.load(tmp_path / folder).table("events")
        return table[table["kind"] != "curvature-note"].reset_index()

    model = small()
    forgotten = run_with(model, torch.optim.SGD(model[0].parameters(), lr=0.1), "forgotten")
    assert list(forgotten["kind"]) == ["not-in-optimizer"] * 2
    assert list(forgotten["subject"]) == ["2.weight", "2.bias"]

    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(16, 3)  # after the optimizer was made
    stale = run_with(model, optimizer, "stale")
    assert list(stale["kind"]) == ["stale-parameters"]
    assert stale["subject"][0] == "2.weight, 2.bias"


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.every_case
def test_a_model_that_is_replaced_by_its_best_copy_on_the_way(copied: bool, tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for step in range(60):
            if step == 30:
                best = copy.deepcopy(model)
                if copied:
                    model = best
                else:
                    model.load_state_dict(best.state_dict())
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda x=x, y=y, model=model: F.cross_entropy(model(x), y))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [(each.cause, each.first_step) for each in found] == ([("stale-parameters", 31)] if copied else [])


@pytest.mark.parametrize("copied", [False, True])
def test_a_loss_weight_that_the_optimizer_learns_too(copied: bool, tmp_path: Path) -> None:
    """Gradients are zeroed before `monitor.step`, which sees none: the weight is stale if nothing is trained."""
    model, weight = small(), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([*model.parameters(), weight], lr=0.1)
    if copied:
        model = copy.deepcopy(model)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for step in range(6):
            x, y = batch(step)
            loss = (-weight).exp() * F.cross_entropy(model(x), y) + weight
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step(loss)
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [finding.cause for finding in found] == (["stale-parameters"] if copied else [])


class Bare(torch.optim.Optimizer):
    def __init__(self) -> None:
        pass


def test_bad_arguments(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(TypeError, match=r"torch.nn.Module"):
        diagnostics.watch(lambda x: x, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run")  # type: ignore
    with pytest.raises(TypeError, match="Optimizer"):
        diagnostics.watch(model, object(), tmp_path / "run")  # type: ignore
    averaged = SimpleNamespace(inner=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"Bare was never initialized as an optimizer"):
        diagnostics.watch(model, Bare(), tmp_path / "run")
    with pytest.raises(TypeError, match=r"not types.SimpleNamespace; pass the one that it holds, \.inner"):
        diagnostics.watch(model, averaged, tmp_path / "run")  # type: ignore
    (tmp_path / "file").write_text("")
    with pytest.raises(diagnostics.RunError, match="file"):
        diagnostics.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "file")
    with (
        diagnostics.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run"),
        pytest.raises(diagnostics.RunError),
    ):
        diagnostics.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run")


class Perturbed(torch.optim.Optimizer):
    """Sharpness-aware minimization: the gradient from a little uphill, for an optimizer of its own."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr)

    def step(self, closure: Any = None) -> Any:
        parameters = self.param_groups[0]["params"]
        if parameters[0].grad is None:
            with torch.enable_grad():
                closure().backward()
        uphill = [0.05 * p.grad / p.grad.norm() for p in parameters]
        torch._foreach_add_([p.data for p in parameters], uphill)
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
            if parameters[0].grad is None:
                loss.backward()
        torch._foreach_sub_([p.data for p in parameters], uphill)
        self.inner.step()


def beside_a_twin(folder: Path, make: Any, run: Any) -> tuple[Any, list[float]]:
    """What was recorded, and what the loop itself tells, of a model that ends as its unwatched twin does."""
    model, twin = small(), small()
    run(twin, make(twin.parameters(), lr=0.1))
    optimizer = make(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, folder, budget=1e9) as monitor:
        told = run(model, optimizer, monitor)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    return diagnostics.load(folder), told


@pytest.mark.parametrize(("backward_before", "backward_in_closure"), [(True, True), (True, False), (False, False)])
def test_an_optimizer_that_evaluates_the_closure_elsewhere(
    backward_before: bool, backward_in_closure: bool, tmp_path: Path
) -> None:
    def run(model: nn.Module, optimizer: torch.optim.Optimizer, told: Any = None) -> list[float]:
        norms = []
        for step in range(6):
            x, y = batch(step)

            def closure(x: Any = x, y: Any = y, backward: bool = backward_in_closure) -> torch.Tensor:
                loss = F.cross_entropy(model(x), y)
                if backward:
                    loss.backward()
                return loss

            optimizer.zero_grad()
            loss = closure(backward=False)
            norms.append(total_norm(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)))
            if backward_before:
                loss.backward()
            optimizer.step(closure)
            if told is not None:
                told.step(loss, lambda x=x, y=y: F.cross_entropy(model(x), y))
        return norms

    watched, norms = beside_a_twin(tmp_path / "run", Perturbed, run)
    scalars = watched.table("scalars")
    assert events(watched) == [] and not diagnostics.diagnose(watched).alarms
    if backward_before:  # else it is gone before the optimizer asks for the next one, which is recorded
        assert scalars["grad_norm"].to_list() == pytest.approx(norms, rel=1e-5)
    assert (scalars["micro_batches"] == 1).all() and (scalars["grad_norm"] > 0).all()


@pytest.mark.parametrize("make", [Perturbed, torch.optim.SGD, torch.optim.LBFGS])
def test_a_gradient_that_cannot_be_read_within_a_step(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(model: nn.Module, optimizer: torch.optim.Optimizer, told: Any = None) -> None:
        for step in range(4):
            x, y = batch(step)

            def closure(x: Any = x, y: Any = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            loss = closure()
            optimizer.step(closure)
            if told is not None:
                told.step(loss)

    def broken(*args: Any) -> None:
        raise RuntimeError("broken")

    model, twin = small(), small()
    run(twin, make(twin.parameters(), lr=0.1))
    monkeypatch.setattr("diagnostics.monitor.updates.Updates._gradients", broken)
    optimizer = make(model.parameters(), lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="could not be measured"),
        diagnostics.watch(model, optimizer, tmp_path / "run", budget=1e9) as monitor,
    ):
        run(model, optimizer, monitor)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert "measurement-failed" in set(diagnostics.load(tmp_path / "run").table("events")["kind"])


def test_a_closure_that_adds_the_last_micro_batch(tmp_path: Path) -> None:
    """As in trainers that give the last of several backward passes to the optimizer's step."""
    model = small()
    optimizer, norms = torch.optim.SGD(model.parameters(), lr=0.1), []
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=1e9) as monitor:
        for step in range(6):
            optimizer.zero_grad()
            for micro in (0, 1):
                x, y = batch(10 * step + micro)
                (F.cross_entropy(model(x), y) / 3).backward()

            def closure(step: int = step) -> torch.Tensor:
                x, y = batch(10 * step + 2)
                loss = F.cross_entropy(model(x), y) / 3
                loss.backward()
                norms.append(norm(model))
                return loss

            monitor.step(optimizer.step(closure))
    watched = diagnostics.load(tmp_path / "run")
    scalars = watched.table("scalars")
    assert events(watched) == ["no-closure"] and not diagnostics.diagnose(watched).alarms
    assert scalars["grad_norm"].to_list() == pytest.approx(norms, rel=1e-5)
    assert (scalars["micro_batches"] == 3).all()


class Wiping(Perturbed):
    """As it was written when gradients were zeroed in place."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        super().step(lambda: self.backward(closure()))

    @staticmethod
    def backward(loss: torch.Tensor) -> torch.Tensor:
        loss.backward()
        return loss


def test_gradients_that_were_wiped_before_the_closure(tmp_path: Path) -> None:
    def run(model: nn.Module, optimizer: torch.optim.Optimizer, told: Any = None) -> list[float]:
        norms = []
        for step in range(6):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
            norms.append(norm(model))
            if told is not None:
                told.step(loss)
        return norms

    watched, norms = beside_a_twin(tmp_path / "run", Wiping, run)
    assert events(watched) == ["no-closure"] and not diagnostics.diagnose(watched).alarms
    assert watched.table("scalars")["grad_norm"].to_list() == pytest.approx(norms, rel=1e-5)


def test_an_optimizer_that_holds_another_and_steps_itself(tmp_path: Path) -> None:
    """A step left out, once it has stepped, is no reason to follow the other one."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.spare = torch.optim.SGD(model.parameters(), lr=0.1)  # type: ignore
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=1e9) as monitor:
        for step in range(8):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if step != 3:
                optimizer.step()
            monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    assert events(run).count("skipped-step") == 1 and run.table("scalars")["grad_norm"].isna().sum() == 1


class TwoSteps(Perturbed):
    """The same in two calls, neither of which is `step`."""

    def first_step(self) -> None:
        self.moved = [0.05 * p.grad / p.grad.norm() for p in self.param_groups[0]["params"]]
        torch._foreach_add_([p.data for p in self.param_groups[0]["params"]], self.moved)
        self.zero_grad()

    def second_step(self) -> None:
        torch._foreach_sub_([p.data for p in self.param_groups[0]["params"]], self.moved)
        self.inner.step()
        self.zero_grad()


def test_an_optimizer_whose_steps_another_one_makes(tmp_path: Path) -> None:
    def run(model: nn.Module, optimizer: TwoSteps, told: Any = None) -> list[float]:
        norms = []
        for step in range(40):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.first_step()
            F.cross_entropy(model(x), y).backward()
            norms.append(norm(model))
            optimizer.second_step()
            if told is not None:
                told.step(loss)
        return norms

    watched, norms = beside_a_twin(tmp_path / "run", TwoSteps, run)
    scalars = watched.table("scalars")
    assert events(watched).count("skipped-step") == 1 and not diagnostics.diagnose(watched).alarms
    assert scalars["grad_norm"].to_list()[1:] == pytest.approx(norms[1:], rel=1e-5)  # by which the inner one steps
    assert (scalars["update_norm"].dropna()[1:] > 0).all()


def total_norm(gradients: tuple[torch.Tensor, ...]) -> float:
    return float(torch.stack([g.norm() for g in gradients]).norm())
