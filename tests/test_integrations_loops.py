"""Frameworks where their loops are least like a plain one, and what is sent elsewhere, against the loop itself."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import diagnostics

pytestmark = pytest.mark.filterwarnings("ignore")  # frameworks warn about much that is theirs


def loader() -> DataLoader:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)


def norm(module: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None))


def fit(module: Any, path: Path, **options: Any) -> None:
    from lightning.pytorch import Trainer

    from diagnostics.integrations.lightning import DiagnosticsCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watching = DiagnosticsCallback(path, every=2, budget=1e9)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", devices=1, enable_model_summary=False, callbacks=[watching], **quiet, **options
    )
    trainer.fit(module, loader())


@pytest.mark.parametrize("every", [1, 3])
def test_lightning_optimizes_by_hand(every: int, tmp_path: Path) -> None:
    """Two optimizers, one of which steps on every third batch only: those it leaves out are no skipped steps."""
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    truth: list[list[float]] = [[], []]

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.automatic_optimization = nn.Linear(6, 8), nn.Linear(8, 2), False

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            first, second = self.optimizers()
            loss = F.cross_entropy(self.b(F.relu(self.a(batch[0]))), batch[1])
            first.zero_grad(), second.zero_grad()
            self.manual_backward(loss)
            truth[1].append(norm(self.b))
            second.step()
            if batch_idx % every == 0:
                truth[0].append(norm(self.a))
                first.step()
            return loss

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.a.parameters(), lr=0.1), torch.optim.Adam(self.b.parameters(), lr=0.01)]

    fit(Module(), tmp_path)
    for number in range(2):
        run = diagnostics.load(tmp_path / f"optimizer-{number}")
        assert list(run.table("scalars")["grad_norm"]) == pytest.approx(truth[number], rel=1e-5)
        left_out = ["gradients-cleared"] if number == 0 and every == 3 else []
        assert list(run.table("events")["kind"]) == ["no-closure", *left_out]
        assert run.meta["optimizer"] == ("SGD", "Adam")[number]


@pytest.mark.parametrize("micro", [1, 2])
def test_lightning_skips_a_step(micro: int, tmp_path: Path) -> None:
    """16-mixed on a CPU, with a gradient that overflows; norms by hand from the unscaled gradients."""
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    from lightning.pytorch.plugins.precision import MixedPrecision

    bad, truth = 4, []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def on_after_backward(self) -> None:
            if self.trainer.fit_loop.batch_idx == bad:
                self.net[2].weight.grad[0, 0] = math.inf

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            truth.append(norm(self))  # unscaled, before clipping

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fit(Module(), tmp_path / "run", plugins=[precision], gradient_clip_val=0.3, accumulate_grad_batches=micro)
    run = diagnostics.load(tmp_path / "run")
    scalars, events = run.table("scalars"), run.table("events")
    skipped = bad // micro
    whole = [math.nan if step == skipped else value for step, value in enumerate(truth)]
    assert list(scalars["step"]) == list(range(1, 12 // micro + 1))
    assert list(scalars["grad_norm_unclipped"]) == pytest.approx(whole, rel=1e-4, nan_ok=True)
    clipped = [math.nan if value != value else min(value, 0.3) for value in whole]
    assert list(scalars["grad_norm"]) == pytest.approx(clipped, rel=1e-4, nan_ok=True)
    assert list(events[events["kind"] != "curvature-note"]["kind"]) == ["skipped-step"]
    assert scalars["update_norm"][skipped] == 0 and scalars["micro_batches"].eq(micro).all()
    assert len(run.table("curvature")) > 1


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("option", [pytest.param("torch_compile", marks=pytest.mark.by_hand), "bf16"])
def test_transformers_options(option: str, tmp_path: Path) -> None:
    """As many compiled graphs as unwatched, the same bits, and the trainer's own losses and norms."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    pytest.importorskip("accelerate", exc_type=ImportError)
    from torch._dynamo.utils import counters

    from diagnostics.integrations.transformers import DiagnosticsCallback

    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )

    def train(callbacks: list[Any]) -> tuple[Any, Any, dict[str, Any]]:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        tokens = torch.randint(0, 32, (32, 12), generator=torch.Generator().manual_seed(1))
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            max_grad_norm=0.5,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
            **{option: True},
        )
        rows = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)
        trainer.train()
        return model, [entry for entry in trainer.state.log_history if "grad_norm" in entry], dict(counters["stats"])

    alone, logs, graphs = train([])
    watched, _, graphs_watched = train([DiagnosticsCallback(tmp_path / "run", every=2, budget=1e9)])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    assert graphs_watched == graphs and bool(graphs) == (option == "torch_compile")
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    assert list(scalars["loss"]) == pytest.approx([entry["loss"] for entry in logs], rel=1e-5)
    assert list(scalars["grad_norm_unclipped"]) == pytest.approx([entry["grad_norm"] for entry in logs], rel=1e-4)
    assert scalars["grad_norm"].max() < 0.5001
    assert any("attention" in name for name in run.table("units")["layer"])
    assert len(run.table("curvature")) > 1


class FakeRun:
    """As much of a wandb run as is used."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, row: dict[str, float]) -> None:
        if len(self.rows) == 3:
            self.rows.append({})
            raise ConnectionError("no network")
        self.rows.append(row)


def watched(path: Path, target: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, path, forward_to=target, budget=1e9) as monitor:
        for step, (x, y) in enumerate(loader()):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
            monitor.log(accuracy=step / 10)
    return diagnostics.load(path)


def test_forwarding_to_a_wandb_run(tmp_path: Path) -> None:
    """Every scalar of every step but the one that the run refused, which is an event and stops nothing."""
    target = FakeRun()
    run = watched(tmp_path / "run", target)
    sent = {int(row["diagnostics/step"]): row["diagnostics/loss"] for row in target.rows if "diagnostics/loss" in row}
    loss = run.table("scalars").set_index("step")["loss"]
    assert sent == {step: value for step, value in loss.items() if step in sent}
    refused = sum(not row for row in target.rows)
    assert refused == 1 and len(target.rows) == 2 * len(loss)
    assert {row["diagnostics/accuracy"] for row in target.rows if "diagnostics/accuracy" in row} >= {0.0, 1.1}
    assert list(run.table("events")["kind"]) == ["no-closure", "measurement-failed"]


@pytest.mark.exhaustive
def test_forwarding_to_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_SILENT", "true")
    target = wandb.init(mode="offline", dir=str(tmp_path), project="forwarded")
    run = watched(tmp_path / "run", target)
    summary = dict(target.summary)
    target.finish()
    last = run.table("scalars").iloc[-1]
    assert summary["diagnostics/step"] == 12 and summary["diagnostics/loss"] == last["loss"]
    assert summary["diagnostics/grad_norm"] == last["grad_norm"] and summary["diagnostics/accuracy"] == 1.1
    assert list(tmp_path.rglob("*.wandb"))
    assert list(run.table("events")["kind"]) == ["no-closure"]
