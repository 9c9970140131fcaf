"""Runs the work on a few processes with a progress bar. A job that fails is reported with its error, not retried."""

import os
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from . import work
from .spec import Case

Job = tuple[str, Case, int]


def attempt(job: Job, out: Path) -> str:
    """Do one job in a worker; the text of its error, or nothing."""
    stage, case, seed = job
    try:
        work.STAGES[stage](case, seed, out)
    except Exception:  # reported by the caller, with the configuration's name
        return traceback.format_exc()
    return ""


def run(jobs: Sequence[Job], out: Path, processes: int, title: str) -> dict[Job, str]:
    """All jobs; returns the errors of those that failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers; two threads on tiny matrices only fight
    bar = tqdm(total=len(jobs), desc=title, unit="run", mininterval=1)
    errors: dict[Job, str] = {}

    def note(job: Job, error: str) -> None:
        bar.update()
        if error:
            errors[job] = error
            tqdm.write(f"{job[0]} {job[1].key} seed {job[2]}: {error.strip().splitlines()[-1]}")

    if processes == 1:
        for job in jobs:
            note(job, attempt(job, out))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            futures = {pool.submit(attempt, job, out): job for job in jobs}
            for future in as_completed(futures):
                note(futures[future], future.result())
    bar.close()
    return errors


def jobs(stage: str, cases: Iterable[Case], seeds: Iterable[int]) -> list[Job]:
    """Seed by seed, so that an interrupted pass has seen every configuration about equally often."""
    cases = list(cases)
    return [(stage, case, seed) for seed in seeds for case in cases]
