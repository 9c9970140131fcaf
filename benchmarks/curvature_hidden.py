"""How often the five largest eigenvalues are wrong, by residuals alone and with a bound on what the start may hide.

    python -m benchmarks.curvature_hidden

Seven states of the networks of `curvature_tasks`, each against a converged reference; the same random starts for each
accepted chance. Wrong: one of the five off by more than the tolerance, one per cent.
"""

import warnings
from collections.abc import Callable

import torch

from benchmarks.curvature import converged, error_of
from benchmarks.curvature_peers import TOP, ours
from benchmarks.curvature_tasks import Task, mlp, transformer
from diagnostics.curvature.solve import Target

STATES: tuple[tuple[Callable[..., Task], int, int, int], ...] = (  # network, updates, its seed, starts
    (mlp, 100, 0, 6),
    (mlp, 5, 3, 6),
    (mlp, 300, 2, 6),
    (transformer, 60, 0, 4),
    (transformer, 20, 1, 4),
    (transformer, 5, 2, 4),
    (transformer, 120, 3, 4),
)
CHANCES = (1.0, 0.5, 0.3, 0.2)


def main() -> None:
    warnings.filterwarnings("ignore")  # the peers' own, on import
    wrong, products = dict.fromkeys(CHANCES, 0), dict.fromkeys(CHANCES, 0)
    for make, updates, seed, starts in STATES:
        torch.manual_seed(seed)
        task = make(steps=updates)
        reference = converged(task)
        for chance in CHANCES:
            answers = [ours(task, Target(TOP, False, hidden=chance), False, start) for start in range(starts)]
            wrong[chance] += sum(error_of(answer, False, reference) > 1e-2 for answer in answers)
            products[chance] += sum(answer.products for answer in answers)
    runs = sum(starts for *_, starts in STATES)
    for chance in CHANCES:
        kept = "residuals alone" if chance == 1 else f"hidden {chance}"
        print(f"{kept:16} wrong in {wrong[chance]:2d} of {runs} runs, {products[chance] / runs:.1f} products")


if __name__ == "__main__":
    main()
