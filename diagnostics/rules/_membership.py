"""Tensors that the optimizer has and the model does not use, or the other way round."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _cut_graph as cut_graph
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENTS
from diagnostics.rules._explained import LITTLE, explained_late
from diagnostics.rules._finding import Chart, Finding, Severity
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import names_of
from diagnostics.run import Run


def unregistered(run: Run) -> Iterator[Finding]:
    told = signals.events(run, "unregistered")
    if told.empty:
        return
    names = tuple(str(told["subject"].iloc[0]).split(", "))
    yield found(
        "unregistered",
        run,
        (
            f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} used and given gradients, but never "
            f"change: {names_of(names)} {'is' if len(names) == 1 else 'are'} in a plain list or dict, or made from a "
            "parameter by .to() or .float(), where model.parameters() does not look."
        ),
        (
            "hold modules in nn.ModuleList or nn.ModuleDict, parameters in nn.ParameterList; then make the optimizer",
            "convert first: nn.Parameter(x.to(device)), not nn.Parameter(x).to(device)",
        ),
        evidence={"tensors": float(len(names))},
        step=int(told["step"].iloc[0]),
        layers=names,
    )


def stale(run: Run) -> Iterator[Finding]:
    told = signals.events(run, "stale-parameters")
    if told.empty:
        yield from _left_behind(run)
        return
    yield found(
        "stale-parameters",
        run,
        f"{str(told['message'].iloc[0]).rstrip('.')}.",
        (
            (
                "make the optimizer after the model is in its final form: optimizer = "
                f"torch.optim.{_optimizer(run)}(model.parameters(), lr=...)"
            ),
        ),
        evidence={"events": float(len(told))},
        step=int(told["step"].iloc[0]),
        layers=tuple(sorted({str(each) for each in told["subject"] if each})),
    )


def _left_behind(run: Run, *, least: int = 20, part: float = 1 / 3) -> Iterator[Finding]:
    """No backward pass comes to anything that is trained, after some did, for at least `part` of the run and to its
    end: no turn that something else is trained in, nor a gradient that is 0."""
    table = run.table("scalars", ["step", "grad_norm", "micro_batches"])
    reached = np.flatnonzero((table["grad_norm"] != 0) | (table["micro_batches"] != 0))
    alone = len(table) - 1 - reached[-1] if len(reached) else 0
    if alone < max(least, part * len(table)):
        return
    first = int(table["step"].iloc[reached[-1] + 1])
    yield found(
        "stale-parameters",
        run,
        (
            f"Since step {first} no backward pass comes to any parameter that the optimizer holds: the losses of the "
            f"last {alone} updates are of other parameters, as of a copy of the model, and nothing was trained."
        ),
        (
            "go on with the same model: model.load_state_dict(best.state_dict()) in place of model = "
            "copy.deepcopy(best)",
            "or make the optimizer, its scheduler and the watch anew for the new model's parameters",
        ),
        evidence={"updates that trained nothing": float(alone)},
        step=first,
    )


def unused(run: Run) -> Iterator[Finding]:
    """Trainable tensors that take part and that nothing depends on, as heads whose term is missing in the loss. What
    takes no part may be an expert that no input was sent to."""
    steps, layers, missing = cut_graph.without_gradient(run)
    if not len(steps):
        return
    absent = (missing == 1).all(0) & cut_graph.still(run)
    seen = {*run.meta["unused"]} - {*run.meta["idle"]}
    names = tuple(str(name) for name in layers[absent] if name in seen)
    if not names:
        return
    it, stays, gives = ("it", "stays", "gives") if len(names) == 1 else ("they", "stay", "give")
    yield found(
        "unused",
        run,
        (
            f"The loss does not depend on {names_of(names)}: {it} {stays} as at the start. Either what {it} "
            f"{gives} is thrown away on the way, or a term is missing in the loss that backward() is called on."
        ),
        (
            "look at what the forward returns, and at what is added up before backward()",
            "what is not to be trained is better left out, or frozen: parameter.requires_grad_(False)",
        ),
        evidence={"tensors": float(len(names))},
        step=int(steps[0]),
        layers=names,
        severity=_of_what_is_unused(run),
        chart=GRADIENTS,
    )


def unused_outputs(run: Run, *, measured: int = 5) -> Iterator[Finding]:
    """Outputs of the last layer that the loss never takes, as those of a head whose term is missing in it. A unit that
    is dead has no gradient either."""
    steps, layers, silent = run.matrix("layers", "silent_fraction")
    names = [str(name) for name in layers]
    last = next((name for name in reversed(names) if name in by_layer.matrices(run)), "")
    if len(steps) < measured or not by_layer.type_of(run, last).startswith(("Linear", "Conv1d", "Conv2d", "Conv3d")):
        return
    shares = silent[:, names.index(last)]
    (_, _, dead), (_, _, hidden) = (run.matrix("units", column) for column in ("dead_fraction", "hidden"))
    if not 0 < shares[0] < 1 or not (shares == shares[0]).all() or (dead[:, ~(hidden == 1).any(0)] > 0).any():
        return
    outputs = int(by_layer.described(run)[last]["shape"][0])
    count = round(float(shares[0]) * outputs)
    yield found(
        "unused",
        run,
        (
            f"The loss does not depend on {count} of the {outputs} outputs of {last.removesuffix('.weight')}: their "
            f"weights got a gradient of exactly 0 in all {len(steps)} measured updates, and stay as they were. A term "
            "may be missing in the loss that backward() is called on."
        ),
        ("look at what is added up before backward(): is all that the model returns compared with targets?",),
        evidence={"outputs": float(count)},
        step=int(steps[0]),
        layers=(last,),
        severity=_of_what_is_unused(run),
        chart=GRADIENTS,
    )


def _of_what_is_unused(run: Run) -> Severity:
    known = explained_late(run)
    return "warning" if known.share + 3 * known.error < LITTLE / 2 else "info"


def left_out(run: Run) -> Iterator[Finding]:
    """Trainable tensors outside of all optimizers whose values stay as they are although they receive gradients."""
    layers = by_layer.described(run)
    outside = [name for name, each in layers.items() if each.get("optimized") is False and not each.get("frozen")]
    outside = [name for name in outside if name not in run.meta["optimized_elsewhere"]]
    if not outside or len(outside) == len(layers):
        return
    steps, names, norms = by_layer.matrix(run, "layers", "weight_norm")
    _, _, gradients = by_layer.matrix(run, "layers", "grad_norm")
    told = signals.events(run, "not-in-optimizer")["subject"]
    measured = [(name, names.index(name)) for name in outside if name in names and len(steps) >= 3]
    still = [name for name, at in measured if _stands_still(norms[:, at], gradients[:, at])]
    stuck = list(dict.fromkeys([*told, *still]))
    if not stuck:
        return
    yield found(
        "not-in-optimizer",
        run,
        (
            f"{len(stuck)} of {len(layers)} tensors get gradients but are not in the optimizer and never change: "
            f"{names_of(stuck)}."
        ),
        (
            f"give the optimizer all parameters: torch.optim.{_optimizer(run)}(model.parameters(), lr=...)",
            f"or freeze them on purpose: model.get_parameter({stuck[0]!r}).requires_grad_(False)",
        ),
        evidence={"tensors": float(len(stuck))},
        step=int(steps[0]),
        layers=tuple(stuck),
    )


def frozen_random(run: Run, *, updates: int = 100) -> Iterator[Finding]:
    """Random features may be meant, and something can be learned from them."""
    names = tuple(map(str, run.meta["frozen_random"]))
    if not names or signals.total(run) < updates:
        return
    few = len(names) == 1
    yield found(
        "frozen-random",
        run,
        (
            f"{len(names)} frozen {'layer holds' if few else 'layers hold'} the random numbers that "
            f"{'it was' if few else 'they were'} initialized with: {names_of(names)}. What the trained ones are given "
            "are random features."
        ),
        (
            "load the pretrained weights before freezing, and look at what model.load_state_dict(state, strict=True) "
            "says: with strict=False names that do not match are left out without a word",
            "or train these layers too: parameter.requires_grad_(True), and give them to the optimizer",
        ),
        evidence={"frozen layers": float(len(names))},
        layers=names,
        severity=unless_it_learns(run, "warning"),
        chart=Chart("line", "layers", ("grad_norm",), "Gradient norm of each trained tensor", log=True),
    )


def _optimizer(run: Run) -> str:
    return str(run.meta["optimizer"] or "SGD")


def _stands_still(norms: np.ndarray, gradients: np.ndarray) -> bool:
    return bool(np.nanmax(gradients, initial=0) > 0 and np.nanmax(norms) == np.nanmin(norms))
