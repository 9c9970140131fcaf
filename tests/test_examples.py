"""The examples run as they stand, and what they record can be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import diagnostics

ROOT = Path(__file__).parents[1]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_character_transformer_is_watched_through_amp_accumulation_and_clipping(tmp_path):
    command = [sys.executable, ROOT / "examples" / "char_transformer.py", "--steps", "20", "--out", tmp_path / "run"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    run = diagnostics.load(tmp_path / "run")
    scalars = run.table("scalars")
    assert run.meta["status"] == "finished"
    assert len(scalars) == 20
    assert (scalars["micro_batches"] == 2).all()
    assert (scalars["grad_norm"] <= 1.0 + 1e-3).all()
    assert scalars["grad_norm_unclipped"].max() > 1.0
    assert any(layer["tied"] for layer in run.meta["layers"])
    assert run.table("curvature")["stability"].notna().all()


@pytest.mark.exhaustive
def test_two_networks_that_train_against_each_other_have_a_run_each_and_no_alarm(tmp_path):
    command = [sys.executable, ROOT / "examples" / "gan.py", "--steps", "200", "--out", tmp_path]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("generator", "discriminator"):
        run = diagnostics.load(tmp_path / name)
        assert len(run.table("scalars")) == 200 and len(run.table("curvature"))
        assert not diagnostics.diagnose(run).alarms, name
