"""What `watch` is asked for wrongly is refused at once, by name, before anything is written; later nothing raises."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diagnostics


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"every": "10"}, TypeError, r"watch: every must be a whole number .*, not '10' \(str\)"),
        ({"every": 2.5}, TypeError, r"every must be a whole number .*, not 2\.5 \(float\)"),
        ({"every": -1}, ValueError, "watch: every is -1; it must be 1 or more"),
        ({"every": 0}, ValueError, "every is 0"),
        ({"curvature_every": -5}, ValueError, "curvature_every is -5; it must be 0 or more"),
        ({"eigenvalues": 0}, ValueError, "eigenvalues is 0; it must be 1 or more .*curvature_every=0 switches"),
        ({"eigenvalues": None}, TypeError, r"eigenvalues must be a whole number .*, not None"),
        ({"budget": -1}, ValueError, "budget is -1; it must be 0 or more"),
        ({"budget": float("nan")}, ValueError, "budget is nan"),
        ({"budget": "5%"}, TypeError, r"budget must be a number, .*, not '5%' \(str\)"),
        ({"first_step": 0}, ValueError, "first_step is 0; it must be 1 or more"),
        ({"on_finding": 5}, TypeError, r"on_finding must be a function of a finding, not 5 \(int\)"),
        ({"name": 5}, TypeError, r"name must be text, not 5 \(int\)"),
        ({"config": [1]}, TypeError, r"config must be a dict of settings, not \[1\] \(list\)"),
        ({"forward_to": 5}, TypeError, "forward_to: int has neither"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_and_nothing_is_written(
    settings: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        diagnostics.watch(*parts(), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("run_dir", [None, 5, "", b"run"])
def test_what_is_no_path_is_said_to_be_none(run_dir: Any) -> None:
    with pytest.raises(TypeError, match="watch: run_dir must be the path of a directory, not "):
        diagnostics.watch(*parts(), run_dir)


def test_parsed_arguments_are_told_how_to_become_a_config(tmp_path: Path) -> None:
    from argparse import Namespace

    with pytest.raises(TypeError, match=r"config must be a dict .*; vars\(config\) makes one"):
        diagnostics.watch(*parts(), tmp_path / "run", config=Namespace(lr=0.1))


def test_numbers_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    settings = {"every": np.int64(5), "eigenvalues": np.int32(3), "budget": np.float32(0.1), "curvature_every": 0}
    diagnostics.watch(*parts(), tmp_path / "run", **settings).close()
    assert diagnostics.load(tmp_path / "run").meta["every"] == 5


def test_doctor_and_diagnose_name_what_they_take() -> None:
    model, optimizer = parts()
    with pytest.raises(TypeError, match=r"doctor: model must be a .*Module, not str"):
        diagnostics.doctor("x", optimizer)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"doctor: optimizer must be a .*Optimizer, not str"):
        diagnostics.doctor(model, "adam")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"diagnose takes a Run, not str: diagnose\(load\(path\)\)"):
        diagnostics.diagnose("runs/x")  # pyright: ignore[reportArgumentType]


def trained(path: Path, closure: Any, steps: int = 8, **settings: Any) -> Any:
    """`closure(loss_of)` is what `monitor.step` is given each time; `loss_of()` computes the loss anew."""
    model, optimizer = parts()
    x = torch.randn(16, 3)

    def loss_of() -> torch.Tensor:
        return (model(x) - 1).square().mean()

    with diagnostics.watch(model, optimizer, path, every=1, **settings) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure(loss_of, loss))
    run = diagnostics.load(path)
    assert run.meta["status"] == "finished" and run.table("scalars")["loss"].notna().all()
    return run.table("events")


def test_a_closure_that_is_no_function_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="was given a Tensor for a closure: it is left out. Give a function"):
        events = trained(tmp_path / "run", lambda loss_of, loss: loss)
    assert "step-closure-not-callable" in set(events["kind"]) and "measurement-failed" not in set(events["kind"])


def _backward(loss_of: Any, _: Any) -> Any:
    def closure() -> torch.Tensor:
        loss = loss_of()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("closure", [_backward, lambda _, loss: lambda: loss], ids=["backward", "the loss of the step"])
def test_a_closure_that_calls_backward_is_told_not_to(closure: Any, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="the closure must not call backward, and must compute the loss anew"):
        events = trained(tmp_path / "run", closure)
    assert "retain_graph" not in " ".join(events["message"])


def test_a_listener_that_fails_is_warned_of_once(tmp_path: Path) -> None:
    """Of a rate at which the loss is infinite after a few updates."""
    model, optimizer = parts()
    optimizer.param_groups[0]["lr"] = 1e3

    def on_finding(finding: Any) -> None:
        raise ValueError("no such channel")

    with (
        pytest.warns(RuntimeWarning, match="on_finding raised ValueError: no such channel") as caught,
        diagnostics.watch(model, optimizer, tmp_path / "run", on_finding=on_finding) as monitor,
    ):
        for _ in range(30):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 3)).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert sum("on_finding" in str(each.message) for each in caught) == 1
    assert "on-finding-failed" in set(diagnostics.load(tmp_path / "run").table("events")["kind"])
