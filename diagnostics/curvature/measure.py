"""One curvature estimate: closure, model and optimizer in, numbers with their errors out.

The Hessian of the closure's batch at the present weights, in the mode being trained. One retained graph serves every
operator; where the optimizer makes two of them the same up to a factor, one basis serves both.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.differences import Differences
from diagnostics.curvature.distributed import Ranks, hessian_of, ranks_of
from diagnostics.curvature.errors import CurvatureError, NonFiniteProduct, TooDear, Unreached
from diagnostics.curvature.estimate import Estimate
from diagnostics.curvature.gains import measured_terms
from diagnostics.curvature.layout import Closure, Layout, loss_of
from diagnostics.curvature.operators import DoubleBackward, Hessian
from diagnostics.curvature.remarks import REPEATS, remarks
from diagnostics.curvature.request import Request
from diagnostics.curvature.runs import Solver
from diagnostics.curvature.scaling import UNKNOWN, Scaling, scaling
from diagnostics.curvature.solve import Target
from diagnostics.curvature.spectrum import spectrum
from diagnostics.curvature.stability import known_as, stability_terms
from diagnostics.curvature.steepest import steepest

# A warm start is worth having while every direction wanted has this share of its length in the last ones. Of two
# networks, one kept more than 0.35 over ten updates: its warm runs were right 22 times of 22. The other kept as little
# as 0.05: right 9 times of 14, and not sooner than from a random vector, which also tells the trace and the density.
LASTED = 0.3
# Of a product, by which two lengths of step may differ, and a double backward from both. Where the first is less than
# 0.02, right ones were off by less than 0.1 but where units stood exactly at a kink; wrong ones are by 0.3 to 1.
CONVERGED, WRONG = 0.02, 0.1
UNFOUND = "no stability ratio: the search ended before it had found the steepest direction"
STOPPED = (
    "parts of the loss that depend on the weights are kept from its gradient (detach, no_grad): curvature is that of "
    "the loss with these parts fixed, and the true stability limit is another"
)


def trained_parameters(optimizer: Optimizer) -> list[Tensor]:
    """What the optimizer changes, each once, in the order of its groups."""
    return list({id(p): p for p in _listed(optimizer)}.values())


def _listed(optimizer: Optimizer) -> list[Tensor]:
    """The same; a parameter may stand there twice, of which torch only warns."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def measure(
    closure: Closure,
    model: nn.Module,
    optimizer: Optimizer,
    learning_rates: Sequence[float],
    *,
    times: float = 1.0,
    eigenvalues: int = 5,
    tolerance: float = 1e-2,
    previous: Estimate | None = None,
    displacement: Sequence[Tensor] | None = None,
    cold: bool | None = None,
    full: bool | Callable[[float], bool | None] = True,
    memory_bytes: int | None = None,
    seconds: float = math.inf,
) -> Estimate:
    """`learning_rates`: of the update just made, one a group. `times`: the optimizer is given so many times the
    gradient of the closure's loss, as where those of several batches are added up. `displacement`: recent change of
    `trained_parameters`.

    `full=False` measures only what the stability ratio and the displacement's condition number need; a function decides
    by the seconds that a product takes, and says `None` to raise TooDear. After so many `seconds` the search for the
    steepest direction ends, converged or not: its residual tells. Under `DistributedDataParallel` and `fully_shard`
    every process must call this at the same step. Raises CurvatureError; nothing is changed even then.
    """
    began = time.perf_counter()
    layout = Layout(trained_parameters(optimizer))
    if previous and not _lasts(previous, layout):
        previous = None
    previous = previous and previous.to(layout.device)
    is_cold = previous is None or previous.age >= previous.cold_after if cold is None else cold or previous is None
    ranks = ranks_of(model, layout)
    request = Request(
        closure,
        model,
        optimizer,
        [1.0 if math.isnan(rate) else rate for rate in learning_rates],  # of one without: its gain holds all of it
        times,
        layout,
        ranks,
        _target(eigenvalues, tolerance, is_cold),
        previous,
        None if displacement is None else layout.flatten(displacement),
        is_cold,
        full,
        memory_bytes,
        began + seconds,
        _loss(closure, model, ranks, layout) if is_cold else math.nan,
    )
    with undisturbed(model, closure, layout.parameters):
        estimate = _measure(request)
    return replace(estimate, seconds=time.perf_counter() - began)


def _lasts(previous: Estimate, layout: Layout) -> bool:
    """Whether its vectors are of these parameters, which may be others by now, or have another size or type."""
    known, before, now = previous.preconditioned_vector, previous.parameters, layout.parameters
    if known is None or known.dtype != layout.dtype or len(known) != layout.dimension:
        return False
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))


def _target(eigenvalues: int, tolerance: float, cold: bool) -> Target:
    """Warm estimates follow the top exactly and the smallest roughly: it costs most, and one batch's is uncertain. What
    they miss, the next cold one finds."""
    return Target(eigenvalues, True, tolerance, tolerance if cold else 5 * tolerance, hidden=0.3 if cold else 1.0)


def _measure(request: Request) -> Estimate:
    """By double backward if that works and its products are symmetric, else by differences of gradients."""
    if request.ranks and request.ranks.sharded:
        reason = "parameters are sharded"
    elif request.previous and request.previous.method == "differences":
        reason = "as in the last estimate"
    else:
        found = _by_double_backward(request)
        if isinstance(found, Estimate):
            return found
        reason = found
    estimate = _estimate(request, _hessian(request, differences=True))
    return replace(estimate, notes=(f"Hessian products are differences of gradients ({reason})", *estimate.notes))


def _by_double_backward(request: Request) -> Estimate | str:
    """The estimate, or why there is none; the graph is freed either way."""
    try:
        hessian = _hessian(request, differences=False)
        estimate = _estimate(request, hessian)
    except NonFiniteProduct:  # as of the root in a norm at 0, whose gradient is taken to be 0 there
        return "a product of the double backward is not finite"
    except CurvatureError:
        raise
    except Unreached as error:
        return str(error)
    except (RuntimeError, NotImplementedError) as error:  # "derivative not implemented", memory, ...
        return f"the loss has no double backward: {str(error).splitlines()[0]}"
    # In half precision asymmetry is rounding, and differences of gradients would be worse.
    if hessian.low_precision:
        return estimate
    if estimate.asymmetric:
        return "the double backward is not symmetric, so it is wrong"
    return _tested(request, hessian, estimate) if isinstance(hessian, DoubleBackward) else estimate


def _tested(request: Request, hessian: DoubleBackward, estimate: Estimate) -> Estimate | str:
    """Against differences of gradients, once for each custom autograd function: its double backward may be symmetric
    and wrong, as where a backward uses what its forward saved. Once a run too where the gradient is stopped on its way
    to something that depends on the weights. Kinks, which are curvature at any finite distance, leave no verdict."""
    before = request.previous.tested if request.previous else frozenset()
    custom = {each.__name__ for each in hessian.custom() if not each.__module__.startswith("torch.")} - before
    tested = replace(estimate, tested=before | custom)
    if estimate.loss_spread > REPEATS or not (custom or (hessian.stops and not request.previous)):
        return tested
    try:
        differences = Differences(request.closure, request.layout, request.model)
        right = differences.error > CONVERGED or differences.disagreement(hessian) <= WRONG
    except CurvatureError:  # where the loss is not defined nearby there is nothing to test with
        right = True
    if right:
        return tested
    if custom:
        return f"the double backward of {', '.join(sorted(custom))} is not the derivative of the gradient"
    return replace(tested, notes=(*tested.notes, STOPPED))


def _hessian(request: Request, differences: bool) -> Hessian:
    return hessian_of(request.closure, request.model, request.layout, request.ranks, differences)


def _estimate(request: Request, hessian: Hessian) -> Estimate:
    if not isinstance(request.full, bool):
        full = request.full(_product_seconds(request.layout, hessian))
        if full is None:
            raise TooDear("a Hessian-vector product takes too long for now")
        request = replace(request, full=full)
    previous = request.previous
    count = previous.count + 1 if previous else 0
    solver = Solver(request.layout, request.ranks, request.memory_bytes, count, request.until, hessian.error == 0)
    scale, notes = _scaling(request, hessian)
    columns: dict[str, Any] = {}
    krylov = None
    if request.full:
        krylov, columns = spectrum(request, hessian, solver)
    columns |= steepest(request, hessian, solver, scale, krylov)
    if scale.known and not math.isnan(scale.sign) and math.isnan(columns.get("stability", math.nan)):
        notes = [*notes, UNFOUND]
    schedule: dict[str, Any] = _schedule(request, columns)
    spread = abs(request.loss - hessian.loss) / max(abs(hessian.loss), 1e-30)
    defect = max(run.defect for run in solver.spent)
    return Estimate(
        **columns,
        start="cold" if request.cold else "warm",
        method=hessian.method,
        dimension=solver.spent[0].dimension,
        products=solver.products,
        seconds=0.0,
        oscillation_limit=scale.oscillation,
        gain_dc=scale.gain,
        symmetry_defect=defect,
        asymmetric=any(run.asymmetric for run in solver.spent),
        loss_spread=spread,
        notes=(*notes, *remarks(hessian, scale, spread, defect)),
        scaling=scale,
        parameters=request.layout.parameters,
        count=count,
        **schedule,
    )


def _product_seconds(layout: Layout, hessian: Hessian) -> float:
    began = time.perf_counter()
    float(hessian(layout.empty().fill_(layout.dimension**-0.5))[0])  # waits for the device
    return time.perf_counter() - began


def _scaling(request: Request, hessian: Hessian) -> tuple[Scaling, list[str]]:
    """The table's terms, or measured ones, or none: the Hessian itself can be measured under any optimizer."""
    if len(_listed(request.optimizer)) > len(request.layout.parameters):
        return UNKNOWN, ["no stability ratio: the optimizer holds a parameter twice, and moves it twice an update"]
    if known_as(request.optimizer):
        terms = stability_terms(request.optimizer, request.rates)
        return scaling([term.given(request.times) for term in terms], request.layout), []
    try:
        gradients = request.layout.split(hessian.gradient)
        terms = measured_terms(request.optimizer, request.rates, gradients)
        name = type(request.optimizer).__name__
        return scaling([term.given(request.times) for term in terms], request.layout), [
            f"the gain of {name} was measured on a copy at the present weights; its weight decay is left out"
        ]
    except Exception as error:  # somebody else's optimizer: whatever it raises, its stability ratio is unknown
        return UNKNOWN, [f"no stability ratio: {error}"]


def _schedule(request: Request, columns: dict[str, Any]) -> dict[str, int]:
    """When the next cold start is due: at once where the last directions are of no use any more; the longer after, the
    more often a cold start found them again."""
    previous = request.previous
    if previous is None or previous.preconditioned_vector is None:
        return {}
    found, known = columns["preconditioned_vector"][None], previous.preconditioned_vector[None]
    if "vectors" in columns and previous.vectors is not None:
        found, known = columns["vectors"], previous.vectors
    overlaps = known @ found.T  # with all of them: two may have changed places
    lasted = bool((request.ranks.total(overlaps) if request.ranks else overlaps).norm(dim=0).min() > LASTED)
    if request.cold:
        return {"cold_after": min(16, max(1, 2 * previous.cold_after)) if lasted else 0}
    return {"age": previous.age + 1 if lasted else previous.cold_after, "cold_after": previous.cold_after}


def _loss(closure: Closure, model: nn.Module, ranks: Ranks | None, layout: Layout) -> float:
    """One forward from the present random state: what the graph's loss must be too, if the closure is deterministic."""

    def evaluate() -> float:
        # Gradients are on as in training: some closures warn without.
        with undisturbed(model, closure, layout.parameters), torch.enable_grad():
            return float(loss_of(closure).detach())

    return ranks.agree(evaluate, layout.device) if ranks else evaluate()
