"""Each framework on a real small training: the truth of the loop, curvature included."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import diagnostics
from diagnostics.run import RunWriter

# Frameworks warn about much that is theirs: the number of workers, deprecated calls of torch, missing devices.
pytestmark = pytest.mark.filterwarnings("ignore")


def dataset(rows: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def truth(steps: int, clip: float, micro: int = 1) -> tuple[list[float], list[float], list[torch.Tensor]]:
    """The same training by hand: losses, norms before clipping, and the weights at the end."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = iter(DataLoader(dataset(), batch_size=8))
    losses, norms = [], []
    torch.manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(micro):
            x, y = next(batches)
            loss = F.cross_entropy(model(x), y) / micro
            loss.backward()
            total += loss.item()
        losses.append(total)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
    return losses, norms, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("micro", [pytest.param(1, marks=pytest.mark.exhaustive), 3])
def test_lightning(micro: int, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    from diagnostics.integrations.lightning import DiagnosticsCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.logged = network(), 0

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            loss = F.cross_entropy(self.net(x), y)
            self.log("train_loss", loss)
            return loss

        def on_train_start(self) -> None:
            torch.manual_seed(7)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.3,
        accumulate_grad_batches=micro,
        num_sanity_val_steps=0,
        callbacks=[DiagnosticsCallback(tmp_path / "run", every=2, budget=1e9)],
    )
    trainer.fit(module, DataLoader(dataset(), batch_size=8), DataLoader(dataset(16), batch_size=8))
    steps = 12 // micro
    losses, norms, weights = truth(steps, 0.3, micro)
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    assert list(scalars["step"]) == list(range(1, steps + 1))
    assert list(scalars["loss"]) == pytest.approx(losses, rel=1e-5)
    assert list(scalars["grad_norm_unclipped"]) == pytest.approx(norms, rel=1e-5)
    assert list(scalars["grad_norm"]) == pytest.approx([min(norm, 0.3) for norm in norms], rel=1e-4)
    assert list(scalars["micro_batches"]) == [micro] * steps
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), weights, strict=True))
    assert len(run.table("curvature")) > 1 and len(run.table("units")) > 2
    assert "val_loss" in scalars and run.meta["status"] == "finished"
    assert list(run.table("events")["kind"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("micro", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_transformers(micro: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    pytest.importorskip("accelerate", exc_type=ImportError)
    from diagnostics.integrations.transformers import DiagnosticsCallback

    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.1, bos_token_id=0, eos_token_id=0
    )

    def train(callbacks: list[Any]) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        tokens = torch.randint(0, 32, (32, 12), generator=torch.Generator().manual_seed(1))
        rows = [{"input_ids": row, "labels": row} for row in tokens]
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=6,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=micro,
            learning_rate=1e-3,
            max_grad_norm=0.5,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)
        trainer.train()
        return model, trainer.state.log_history

    alone, history = train([])
    watched, _ = train([DiagnosticsCallback(tmp_path / "run", every=2, budget=1e9)])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    run = diagnostics.load(tmp_path / "run")
    scalars, logs = run.table("scalars"), [entry for entry in history if "grad_norm" in entry]
    assert list(scalars["step"]) == [1, 2, 3, 4, 5, 6]
    assert list(scalars["loss"]) == pytest.approx([entry["loss"] for entry in logs], rel=1e-3)
    assert list(scalars["grad_norm_unclipped"]) == pytest.approx([entry["grad_norm"] for entry in logs], rel=1e-3)
    assert scalars["grad_norm"].max() < 0.5001
    assert scalars["micro_batches"].eq(micro).all()
    assert len(run.table("curvature")) > 1
    assert any("attention" in name for name in run.table("units")["layer"])
    assert run.meta["status"] == "finished"


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=3)
    model = network()
    torch.manual_seed(7)
    # The loader of the truth has no workers and no shuffling either, so that both draw the same random numbers.
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    monitor = diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=1e9)
    total = 0.0
    batches = iter(DataLoader(dataset(), batch_size=8))
    torch.manual_seed(7)
    for index in range(12):
        x, y = next(batches)
        with accelerator.accumulate(model):
            accelerator.gradient_state._set_sync_gradients(index % 3 == 2)
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            total += loss.item() / 3
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            monitor.step(total, lambda x=x, y=y: F.cross_entropy(model(x), y))
            total = 0.0
    monitor.close()
    losses, norms, weights = truth(4, 0.3, 3)
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    assert list(scalars["loss"]) == pytest.approx(losses, rel=1e-5)
    assert list(scalars["grad_norm_unclipped"]) == pytest.approx(norms, rel=1e-5)
    assert list(scalars["micro_batches"]) == [3] * 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert list(run.table("events")["kind"]) == []


def test_tensorboard_import_and_forwarding(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", exc_type=ImportError)
    from torch.utils.tensorboard import SummaryWriter

    from diagnostics.integrations.tensorboard import import_tfevents

    with SummaryWriter(str(tmp_path / "events")) as old:
        for step in range(20):
            old.add_scalar("train/loss", 1 / (step + 1), step)
            old.add_scalar("lr", 0.1, step)
            old.add_scalar("val/accuracy", step / 20, step)
    old.close()
    assert import_tfevents(tmp_path / "events", tmp_path / "old") == [tmp_path / "old"]
    scalars = diagnostics.load(tmp_path / "old").table("scalars")
    assert list(scalars["step"]) == list(range(1, 21))
    assert list(scalars["loss"]) == pytest.approx([1 / n for n in range(1, 21)])
    assert list(scalars["lr"]) == pytest.approx([0.1] * 20)
    assert list(scalars["val/accuracy"]) == pytest.approx([step / 20 for step in range(20)])
    assert not diagnostics.diagnose(diagnostics.load(tmp_path / "old")).crashed

    with pytest.raises(diagnostics.RunError, match="no TensorBoard event file"):
        import_tfevents(tmp_path / "nothing", tmp_path / "none")

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    board = SummaryWriter(str(tmp_path / "forwarded"))
    with diagnostics.watch(model, optimizer, tmp_path / "run", forward_to=board) as monitor:
        for x, y in DataLoader(dataset(), batch_size=8):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    board.close()
    import_tfevents(tmp_path / "forwarded", tmp_path / "again")
    ours, theirs = (
        diagnostics.load(tmp_path / "run").table("scalars"),
        diagnostics.load(tmp_path / "again").table("scalars"),
    )
    assert list(theirs["loss"]) == pytest.approx(list(ours["loss"]), rel=1e-5)
    assert list(theirs["grad_norm"]) == pytest.approx(list(ours["grad_norm"]), rel=1e-5)


def logged(folder: Path, **series: dict[int, float]) -> Path:
    """Event files of these scalars, tag -> step -> value; `__` for the slash of a tag."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    with tensorboard.SummaryWriter(str(folder)) as board:
        for tag, points in series.items():
            for step, value in points.items():
                board.add_scalar(tag.replace("__", "/"), value, step)
    return folder


def test_scalars_logged_at_different_steps_are_imported_without_gaps(tmp_path: Path) -> None:
    """A gap would be a NaN, and so a false alarm; the validation loss is not at a step of the loss."""
    from diagnostics.integrations.tensorboard import import_tfevents

    source = logged(
        tmp_path / "events",
        train__loss={step: 1 / step for step in range(50, 501, 50)},
        lr={step: 0.1 if step < 200 else 0.01 for step in range(10, 501, 10)},
        grad_norm={step: 1.0 for step in range(100, 501, 100)},
        val_loss={120: 0.5, 260: 0.25},
    )
    for _ in range(2):  # the second import takes the place of the first
        import_tfevents(source, tmp_path / "run")
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars").set_index("step")
    assert list(scalars.index) == list(range(50, 501, 50))
    assert list(scalars["lr"]) == pytest.approx([0.1] * 3 + [0.01] * 7)
    assert scalars["grad_norm (logged)"].count() == 5 and scalars["grad_norm"].isna().all()
    assert scalars["val_loss"].dropna().to_dict() == {100: 0.5, 250: 0.25}
    assert "non-finite" not in {finding.kind for finding in diagnostics.diagnose(run).findings}


def test_event_files_without_a_loss_are_left_out_or_say_what_was_looked_for(tmp_path: Path) -> None:
    from diagnostics.integrations.tensorboard import import_tfevents

    source = tmp_path / "events"
    logged(source / "empty")
    with pytest.raises(diagnostics.RunError, match="holds no scalars"):
        import_tfevents(source, tmp_path / "none")
    logged(source / "unknown", Train__MSE={1: 1.0})
    with pytest.raises(diagnostics.RunError, match="Train/MSE; looked for train_loss"):
        import_tfevents(source, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    logged(source / "known", loss={1: 1.0})
    assert import_tfevents(source, tmp_path / "runs") == [tmp_path / "runs" / "known"]


def test_an_import_replaces_no_run_that_was_recorded(tmp_path: Path) -> None:
    from diagnostics.integrations.tensorboard import import_tfevents

    source = tmp_path / "events"
    for name in ("a", "b"):
        logged(source / name, loss={1: 1.0})
    writer = RunWriter(tmp_path / "runs" / "b", {"name": "recorded"})
    writer.append("scalars", 1, {"loss": 7.0})
    writer.close("finished")
    with pytest.raises(diagnostics.RunError, match="recorded, not imported"):
        import_tfevents(source, tmp_path / "runs")
    assert list(diagnostics.load(tmp_path / "runs" / "b").table("scalars")["loss"]) == [7.0]
    assert not (tmp_path / "runs" / "a").exists()


def test_forwarding_to_something_else_is_refused(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(TypeError, match="add_scalar"):
        diagnostics.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run", forward_to=object())


@pytest.mark.exhaustive
def test_frameworks_are_imported_only_when_used() -> None:
    import subprocess
    import sys

    code = "import sys, diagnostics.integrations.lightning, diagnostics.integrations.transformers as t; "
    code += "assert not {'lightning', 'transformers', 'tensorboard'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
