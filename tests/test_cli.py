"""The command line, as a person and as a CI job use it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from diagnostics.__main__ import main
from diagnostics.rules import VERSION, diagnose
from diagnostics.run import RunWriter, load, summarize

SAMPLES = Path(__file__).parents[1] / "sample_runs"
HEALTHY, UNSTABLE = str(SAMPLES / "healthy-mlp"), str(SAMPLES / "lr-unstable")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    writer = RunWriter(tmp_path / "runs" / "small", {"name": "small", "optimizer": "SGD", "config": {"seed": 1}})
    for step in range(1, 31):
        writer.append("scalars", step, {"time": 1e9 + step, "loss": 1 / step, "lr": 0.1})
    writer.append_many("layers", 30, ["a", "b"], {"grad_norm": [1.0, float("nan")]})
    writer.event(7, "skipped-step", "the scaler skipped a step")
    writer.close("finished")
    return tmp_path / "runs"


def run_json(capsys, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_check_until_judges_the_run_as_it_was(capsys):
    assert main(["check", UNSTABLE, "--until", "1"]) == 0
    said = capsys.readouterr().out
    assert "as it was at step 1 of" in said and "Too early to judge: 1 update recorded" in said


def test_check_ends_with_2_where_nothing_can_be_judged(tmp_path, capsys):
    RunWriter(tmp_path / "empty", {"name": "empty"}).close("finished")
    assert main(["check", str(tmp_path / "empty"), "--json"]) == 2
    (result,) = json.loads(capsys.readouterr().out)
    assert result["verdict"]["sign"] == "open" and not result["verdict"]["judged"] and result["warnings"] == []


def test_what_was_warned_of_while_recording_is_said_by_check(tmp_path, capsys):
    writer = RunWriter(tmp_path / "run", {"name": "run"})
    writer.append("scalars", 1, {"loss": 1.0})
    writer.event(1, "step-missing", "monitor.step was not called after an update")
    writer.close("finished")
    assert main(["check", str(tmp_path / "run")]) == 0
    assert "while recording: monitor.step was not called after an update (step 1)" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("diagnostics ")


def test_check_exits_with_what_it_found(capsys, tmp_path):
    assert main(["check", HEALTHY]) == 0
    assert main(["check", HEALTHY, UNSTABLE]) == 1
    assert main(["check", UNSTABLE, str(tmp_path / "nothing")]) == 2
    out = capsys.readouterr().out
    assert "No alarm: 14 of 15 checked" in out and "CRITICAL lr-unstable (learning-rate), since step" in out
    assert "try: " in out and "cannot be read" in out and "Next: " in out
    assert "\x1b" not in out


def test_check_takes_a_folder_of_runs(capsys, folder):
    (folder / "bad").mkdir()
    (folder / "bad" / "run.json").write_text("{")
    code, results = run_json(capsys, "check", str(folder))
    assert code == 2 and {Path(result["run"]).name: result["status"] for result in results} == {
        "small": "finished",
        "bad": "broken",
    }


def test_check_names_a_missing_measurement_once(capsys, folder):
    main(["check", str(folder / "small")])
    unchecked = [line for line in capsys.readouterr().out.splitlines() if "not checked" in line]
    assert any("saddle-point, ravine" in line for line in unchecked)
    assert len({line.split("(")[-1] for line in unchecked}) == len(unchecked)


def test_check_as_json_has_the_whole_diagnosis(capsys):
    code, (result,) = run_json(capsys, "check", UNSTABLE)
    assert code == 1 and result["status"] == "finished" and result["alarms"] >= 1
    finding = result["findings"][0]
    assert finding["kind"] == "lr-unstable" and finding["severity"] == "critical" and finding["remedies"]
    assert {"clean", "skipped", "crashed"} <= result.keys()


def test_check_until_a_step_knows_nothing_later(capsys):
    _, (result,) = run_json(capsys, "check", UNSTABLE, "--until", "3")
    assert all(finding["first_step"] <= 3 for finding in result["findings"])


def test_show(capsys, folder):
    assert main(["show", str(folder / "small")]) == 0
    out = capsys.readouterr().out
    assert "small" in out and "seed 1" in out and "skipped-step: the scaler skipped a step" in out
    _, shown = run_json(capsys, "show", str(folder / "small"))
    assert shown["meta"]["optimizer"] == "SGD"
    assert {"table": "scalars", "steps": 30, "first": 1, "last": 30} in shown["tables"]
    assert shown["events"][0]["kind"] == "skipped-step"


def test_ls(capsys, folder):
    (folder / "bad").mkdir()
    (folder / "bad" / "run.json").write_text("[")
    assert main(["ls", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "small" in out and "finished" in out and "broken" in out and "█" in out
    _, rows = run_json(capsys, "ls", str(folder))
    small = next(row for row in rows if row["name"] == "small")
    assert small["steps"] == 30 and small["loss"] == pytest.approx(1 / 30) and len(small["sparkline"]) == 30


def test_ls_diagnoses_anew_what_other_rules_diagnosed(capsys, folder):
    """As the dashboard does."""
    run = load(str(folder / "small"))
    closed = summarize(run, diagnose(run)) | {"files": run.fingerprint()[0]}
    worst = {"kind": "cliff", "cause": None, "severity": "critical", "first_step": 1, "summary": "of old rules"}
    summary = {"steps": 30, "loss": 1.0, "lr": 0.1, "sparkline": [1.0], "counts": {"critical": 1}, "worst": worst}
    for version, told in (("0", False), (str(VERSION), True)):
        written = closed | summary | {"rules_version": version}
        (folder / "small" / "summary.json").write_text(json.dumps(written))
        assert (run_json(capsys, "ls", str(folder))[1][0]["worst"] == "cliff") == told


def test_ls_finds_its_folder_as_the_dashboard_does(capsys, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("DIAGNOSTICS_RUNS", str(folder))
    assert run_json(capsys, "ls")[1][0]["name"] == "small"
    monkeypatch.delenv("DIAGNOSTICS_RUNS")
    monkeypatch.chdir(tmp_path)
    assert run_json(capsys, "ls")[1][0]["name"] == "small"  # ./runs
    assert main(["ls", str(tmp_path / "cache")]) == 0 and "Next: record one" in capsys.readouterr().out


def test_tail(capsys, folder):
    assert main(["tail", str(folder / "small"), "-n", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == ["step 29  loss 0.03448  lr 0.1", "step 30  loss 0.03333  lr 0.1"]
    assert main(["tail", str(folder / "small"), "-n", "25", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows] == list(range(6, 31))
    assert rows[1]["events"][0]["kind"] == "skipped-step" and rows[0]["grad_norm"] == "nan"


def test_tail_follows_a_run_to_its_end(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append("scalars", 1, {"loss": 1.0})
    writer.flush()
    command = [sys.executable, "-m", "diagnostics", "tail", "--follow", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout.readline() == "step 1  loss 1\n"
    writer.append("scalars", 2, {"loss": 0.5})
    assert process.stdout.readline() == "step 2  loss 0.5\n"
    writer.append("scalars", 3, {"loss": 0.25})
    writer.close("finished")
    assert process.communicate(timeout=20)[0] == "step 3  loss 0.25\n" and process.returncode == 0


def test_export_opens_in_one_line(capsys, folder, tmp_path):
    code, counts = run_json(capsys, "export", str(folder / "small"), "--out", str(tmp_path / "out"))
    assert code == 0 and counts["rows"] == {"scalars": 30, "layers": 2, "events": 1}
    scalars = pd.read_parquet(tmp_path / "out" / "scalars.parquet")
    assert scalars["loss"].tolist() == [1 / step for step in range(1, 31)]
    assert main(["export", str(folder / "small"), "--format", "csv", "--out", str(tmp_path / "out")]) == 0
    layers = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert layers["layer"].tolist() == ["a", "b"] and layers["grad_norm"].isna().tolist() == [False, True]


def test_exporting_in_pieces_gives_the_same_files(folder, tmp_path, monkeypatch):
    from diagnostics.run import export, load

    export.export(load(HEALTHY), tmp_path / "whole")
    monkeypatch.setattr(export, "_STEPS_AT_ONCE", 7)
    export.export(load(HEALTHY), tmp_path / "pieces")
    for file in (tmp_path / "whole").iterdir():
        pd.testing.assert_frame_equal(pd.read_parquet(file), pd.read_parquet(tmp_path / "pieces" / file.name))


@pytest.mark.parametrize("command", ["show", "tail", "export"])
def test_what_is_no_run_is_one_line_on_stderr(capsys, tmp_path, command):
    assert main([command, str(tmp_path / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "Next: " in captured.err


def test_names_cannot_repaint_the_terminal(capsys, tmp_path):
    writer = RunWriter(tmp_path / "runs" / "evil", {"name": "evil\x1b[2J\x07", "optimizer": "\x1b]0;title\x07"})
    writer.append("scalars", 1, {"loss": 1.0})
    writer.event(1, "budget", "\x1b[31mred\x1b[0m", "x")
    writer.close("finished")
    for command in (["check"], ["show"], ["tail"]):
        main([*command, str(tmp_path / "runs" / "evil")])
    main(["ls", str(tmp_path / "runs")])
    assert "\x1b" not in capsys.readouterr().out


def test_help_names_every_command_and_needs_no_torch():
    code = (
        "import sys, diagnostics.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    usage, loaded = out.rsplit("\n[", 1)
    assert all(command in usage for command in ("check", "show", "ls", "tail", "export", "import", "report"))
    assert "'torch'" not in loaded and "'pandas'" not in loaded


def test_a_closed_pipe_is_no_error(folder):
    command = f"{sys.executable} -m diagnostics tail {folder / 'small'} -n 30 | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "step 1  loss 1  lr 0.1\n" and done.stderr == ""


def test_a_package_that_is_missing_is_named_with_what_to_install(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    for name in [name for name in sys.modules if name.startswith(("diagnostics.views", "diagnostics.charts"))]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["report", str(folder / "small")]) == 2
    assert "altair" in (err := capsys.readouterr().err) and "Next: pip install" in err


def test_report_writes_one_file(capsys, folder, tmp_path):
    assert main(["report", str(folder / "small"), str(tmp_path / "report.html")]) == 0
    assert "small" in (tmp_path / "report.html").read_text() and "report.html" in capsys.readouterr().out


def test_a_path_that_cannot_be_written_is_named_with_the_next_step(capsys, folder, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (["export", "--out"], ["report"]):
        arguments = [command[0], str(folder / "small"), *command[1:], str(tmp_path / "file" / "x")]
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"{tmp_path / 'file' / 'x'} cannot be written (") and "Next: give another" in err


def test_a_folder_that_is_not_there_is_no_empty_one(capsys, tmp_path, monkeypatch):
    assert main(["ls", str(tmp_path / "nope")]) == 2
    captured = capsys.readouterr()
    assert "nope cannot be listed (there is no such folder). Next: check the path" in captured.err and not captured.out
    monkeypatch.setenv("DIAGNOSTICS_RUNS", str(tmp_path / "nope"))
    assert main(["ls"]) == 2
    monkeypatch.delenv("DIAGNOSTICS_RUNS")
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0  # ./runs, before the first run


@pytest.mark.parametrize("arguments", [["tail", "-n", "-3"], ["tail", "-n", "few"], ["show", "--events", "-1"]])
def test_counts_that_make_no_sense_are_usage_errors(arguments, capsys, folder):
    with pytest.raises(SystemExit) as ended:
        main([arguments[0], str(folder / "small"), *arguments[1:]])
    assert ended.value.code == 2 and f"{arguments[-1]!r} is no whole number of" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_and_no_year_is_made_up(capsys, folder):
    RunWriter(folder / "again", {"name": "small"}).close("finished")
    (folder / "bad").mkdir()
    (folder / "bad" / "run.json").write_text("[")
    main(["ls", str(folder)])
    out = capsys.readouterr().out
    assert "small (small)" in out and "small (again)" in out and "bad (" not in out and "1970" not in out
    broken = next(row for row in run_json(capsys, "ls", str(folder))[1] if row["status"] == "broken")
    assert broken["created"] is None
