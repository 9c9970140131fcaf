"""Processes that end in every way a process can end, and what their runs hold afterwards."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from diagnostics.run import RunError, RunWriter, load

# One process imports the package and forks the trainers, so that a hundred of them start in milliseconds. Each appends
# a step every two milliseconds and notes in shared memory when; now and then it flushes and notes what was flushed.
KILLING = """
    import json, mmap, os, random, signal, sys, time
    import numpy as np
    from diagnostics.run import RunWriter, load

    folder, rounds, at_once = sys.argv[1], int(sys.argv[2]), 10

    def train(path, times, flushed):
        writer = RunWriter(path, {"name": "killed"})
        for step in range(1, len(times)):
            writer.append("scalars", step, {"loss": float(step)})
            if step % 10 == 0:
                writer.append_many("layers", step, ["a", "b"], {"grad_norm": [step, -step]})
            times[step] = time.time()
            if step % 97 == 0:
                writer.flush()
                flushed[0] = step
            time.sleep(0.002)

    def whole(run):
        scalars = run.table("scalars")
        steps, _, values = run.matrix("layers", "grad_norm")
        assert scalars["step"].tolist() == list(range(1, len(scalars) + 1)), "a hole"
        assert (scalars["loss"] == scalars["step"]).all() and (values[:, :1] == steps[:, None]).all(), "a wrong number"
        return len(scalars)

    def follow(run, path):
        try:
            run = run.refresh() if run else load(path)
        except Exception as error:
            assert "RunError" in type(error).__name__ and not os.path.exists(path + "/run.json"), repr(error)
            return None, 0
        return run, whole(run)

    random.seed(0)
    results = []
    for start in range(0, rounds, at_once):
        children = {}
        for number in range(start, min(start + at_once, rounds)):
            memory = np.frombuffer(mmap.mmap(-1, 8 * 4002), float)
            path = f"{folder}/{number}"
            pid = os.fork()
            if pid == 0:
                train(path, memory[:4000], memory[4000:])
                os._exit(0)
            children[pid] = (path, memory, time.time() + random.uniform(0.05, 1.6))
        runs = {}
        while children:
            for pid, (path, memory, end) in list(children.items()):
                runs[path], seen = follow(runs.get(path), path)
                if time.time() < end:
                    continue
                os.kill(pid, signal.SIGKILL)
                killed = time.time()
                os.waitpid(pid, 0)
                del children[pid]
                if not os.path.exists(path + "/run.json"):
                    results.append({"path": path, "started": False})
                    continue
                run = load(path)
                recorded, appended = whole(run), memory[1:4000]
                due = int(((appended > 0) & (appended < killed - 1)).sum())
                results.append({
                    "path": path, "started": True, "status": run.meta["status"], "recorded": recorded,
                    "seen": seen, "flushed": int(memory[4000]), "due": due, "appended": int((appended > 0).sum()),
                })
            time.sleep(0.02)
    print(json.dumps(results))
"""


def python(script, *arguments, **options):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, **options)


def start(script, *arguments):
    # A shell's background jobs ignore Ctrl-C, and what they start inherits that.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", heeding + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kills", [30, pytest.param(100, marks=pytest.mark.by_hand)])
def test_many_kills_lose_nothing_flushed_and_at_most_a_second(kills, tmp_path):
    done = python(KILLING, tmp_path, kills)
    assert done.returncode == 0, done.stderr
    results = [result for result in json.loads(done.stdout) if result["started"]]
    assert len(results) > 0.9 * kills
    for result in results:
        assert result["status"] == "interrupted", result
        assert result["recorded"] >= max(result["flushed"], result["seen"], result["due"]), result
    assert sum(result["recorded"] for result in results) > 50 * kills


TRAINING = """
    import os, sys, threading, time
    from diagnostics.run import RunWriter

    writer = RunWriter(sys.argv[1], {})
    for step in range(1, 101):
        writer.append("scalars", step, {"loss": 1.0})
    ENDING
"""

ENDINGS = {
    "exception": ("raise ValueError('training failed')", "failed"),
    "exit": ("sys.exit(3)", "finished"),
    "end": ("pass", "finished"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreters_end_loses_nothing(tmp_path, ending):
    code, status = ENDINGS[ending]
    python(TRAINING.replace("ENDING", code), tmp_path / "run")
    run = load(tmp_path / "run")
    assert run.last_step == 100 and run.meta["status"] == status


def test_os_exit_from_another_thread_loses_at_most_a_second(tmp_path):
    ending = "threading.Timer(1.2, os._exit, (5,)).start(); time.sleep(60)"
    assert python(TRAINING.replace("ENDING", ending), tmp_path / "run").returncode == 5
    run = load(tmp_path / "run")
    assert run.last_step == 100 and run.meta["status"] == "interrupted"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, "interrupted"), (signal.SIGINT, "failed")])
def test_signals_lose_at_most_a_second(tmp_path, number, status):
    process = start(TRAINING.replace("ENDING", "print('ready', flush=True); time.sleep(60)"), tmp_path / "run")
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    process.send_signal(number)
    process.wait(20)
    process.stdout.close()
    run = load(tmp_path / "run")
    assert run.last_step == 100 and run.meta["status"] == status


def test_a_killed_process_can_be_continued_at_once(tmp_path):
    process = start(TRAINING.replace("ENDING", "print('ready', flush=True); time.sleep(60)"), tmp_path / "run")
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(RunError, match=rf"process {process.pid} "):
        RunWriter(tmp_path / "run", {})
    writer_is_alive = load(tmp_path / "run").meta["status"]
    time.sleep(0.7)
    process.kill()
    process.wait(20)
    process.stdout.close()
    assert writer_is_alive == "running" and load(tmp_path / "run").meta["status"] == "interrupted"
    writer = RunWriter(tmp_path / "run", {})
    assert writer.resumed_from == 100
    writer.close("finished")


FORKING = """
    import os, sys, time
    from diagnostics.run import RunWriter

    writer = RunWriter(sys.argv[1], {})
    writer.append("scalars", 1, {"loss": 1.0})
    pid = os.fork()
    if pid == 0:
        for step in range(2, 100):
            writer.append("scalars", step, {"loss": -1.0})
        writer.flush()
        writer.close("failed")
        if sys.argv[2] == "orphan":
            time.sleep(3)
        sys.exit(0)
    if sys.argv[2] == "orphan":
        os._exit(0)
    os.waitpid(pid, 0)
    writer.append("scalars", 2, {"loss": 2.0})
    writer.close("finished")
"""


def test_a_forked_child_leaves_the_run_to_its_parent(tmp_path):
    done = python(FORKING, tmp_path / "run", "wait")
    assert done.returncode == 0, done.stderr
    run = load(tmp_path / "run")
    assert run.table("scalars")["loss"].tolist() == [1.0, 2.0] and run.meta["status"] == "finished"


def test_a_child_that_outlives_its_parent_does_not_hold_the_run(tmp_path):
    process = start(FORKING, tmp_path / "run", "orphan")
    process.wait(20)
    process.stdout.close()
    for _ in range(100):  # a child that has not run yet still has what it was given when it was forked
        try:
            RunWriter(tmp_path / "run", {}).close("finished")
            return
        except RunError:
            time.sleep(0.02)
    pytest.fail("the child holds the run")


STARTING = """
    import os, sys, time
    from diagnostics.run import RunError, RunWriter

    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                RunWriter(sys.argv[1], {})
                time.sleep(1.0)
            except RunError as error:
                os._exit(3 if "is being written" in str(error) else 4)
            os._exit(0)
        pids.append(pid)
    print(sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def test_of_writers_that_start_together_one_writes(tmp_path):
    assert python(STARTING, tmp_path / "run").stdout.strip() == str([0] + 7 * [3])


INTERRUPTING = """
    import signal, sys
    from diagnostics.run import RunWriter

    class Interrupt(Exception):
        pass

    def interrupt(*_):
        global interrupted
        if flushing:
            interrupted += 1
            raise Interrupt

    flushing, interrupted = False, 0
    signal.signal(signal.SIGALRM, interrupt)
    writer = RunWriter(sys.argv[1], {})
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0011)
    for step in range(1, 1001):
        writer.append("scalars", step, {"loss": float(step)})
        try:
            flushing = True
            writer.flush()
            flushing = False
        except Interrupt:
            flushing = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    writer.close("finished")
    print(interrupted)
"""


def test_a_flush_that_is_interrupted_loses_nothing(tmp_path):
    done = python(INTERRUPTING, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    assert load(tmp_path / "run").table("scalars")["loss"].tolist() == [float(step) for step in range(1, 1001)]
