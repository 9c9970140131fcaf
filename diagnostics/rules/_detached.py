"""A graph that is cut: between the model and the loss, in the model, or between the steps of a recurrence; and one that
is not cut where it has to be."""

from collections.abc import Iterator

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _cut_graph as cut_graph
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENTS
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import modules_of, names_of
from diagnostics.run import Run

_CUT = "The loss has no gradient: the graph is cut between the model's output and the loss."
_ERASED = "Backward passes ran, but the optimizer found no gradient in any update: they were erased before its step."
_ZERO_FIRST = ("call optimizer.zero_grad() before loss.backward(), not between it and optimizer.step()",)
_REATTACH = (
    "remove .detach(), .data, .item(), .numpy(), torch.tensor([...]) of losses, torch.no_grad() or a comparison "
    "between these layers and the loss",
)


def detached(run: Run) -> Iterator[Finding]:
    """The loss has no gradient, or all tensors up to some point of the model have none while those behind it do, or
    some to which the loss gives one."""
    cut = cut_graph.no_graph(run)
    steps, layers, missing = cut_graph.without_gradient(run)
    nowhere = len(steps) > 0 and not (missing < 1).any() and bool(cut_graph.still(run).all())  # else one was there
    if (len(cut) or nowhere or cut_graph.erased_always(run)) and not by_layer.counts_errors(run):
        first = signals.first_step(run)
        summary, remedies = (_ERASED, _ZERO_FIRST) if cut_graph.erased(run) and not len(cut) else (_CUT, _REATTACH)
        yield found("detached", run, summary, remedies, evidence={"updates": float(signals.total(run))}, step=first)
        return
    if not len(steps):
        return
    seen = cut_graph.detached(run, steps, layers, missing)
    names = seen or cut_graph.before(run, layers, missing)
    kept = cut_graph.told_by_closure(run, "withheld", steps, layers, missing)
    if kept and not seen:
        yield _withheld(run, int(steps[0]), kept)
        return
    hard = [function for function, _ in by_layer.activations(run).values() if function in by_layer.HARD_THRESHOLDS]
    if not names or hard:  # a threshold cuts the graph too; zero-gradient names it, where there is a gradient of zero
        felt = cut_graph.told_by_closure(run, "by_value", steps, layers, missing)
        if felt:
            yield _by_value(run, int(steps[0]), felt)
        return
    yield found(
        "detached",
        run,
        (
            f"No gradient reaches {names_of(names)}, but it reaches the tensors behind: "
            f"{'what is computed from them is detached' if seen else 'the graph is cut between them'}."
        ),
        (*_REATTACH, "or freeze them on purpose with requires_grad_(False)"),
        evidence={"tensors": float(len(names))},
        step=int(steps[0]),
        layers=names,
        severity=unless_it_learns(run, "critical", "warning" if seen else "critical"),
        chart=GRADIENTS,
    )


def _by_value(run: Run, step: int, names: tuple[str, ...]) -> Finding:
    return found(
        "detached",
        run,
        (
            f"The loss changes with {names_of(names)}, but has no gradient there: something between gives numbers "
            "without a graph, as argmax, round, a comparison, .item(), .detach() and torch.no_grad() do."
        ),
        (
            "in place of argmax take the mean of the places, weighed by a softmax; in place of round or a comparison "
            "something smooth, or z + (round(z) - z).detach()",
            *_REATTACH,
        ),
        evidence={"tensors": float(len(names))},
        step=step,
        layers=names,
        severity=unless_it_learns(run, "critical", "warning"),
        chart=GRADIENTS,
    )


def _withheld(run: Run, step: int, names: tuple[str, ...]) -> Finding:
    return found(
        "gradient-withheld",
        run,
        (
            f"The loss depends on {names_of(names)}, but the loop leaves no gradient there in any update: the backward "
            "pass of a part of the loss is missing, or zero_grad() erases it before the optimizer's step."
        ),
        (
            "call backward() once, on the sum of all parts of the loss",
            "call optimizer.zero_grad() once an update, before the first backward()",
        ),
        evidence={"tensors": float(len(names))},
        step=step,
        layers=names,
        severity=unless_it_learns(run, "critical", "warning"),
        chart=GRADIENTS,
    )


def cancelled(run: Run) -> Iterator[Finding]:
    names = tuple(str(name) for name in run.meta["cancelled"])
    if not names:
        return
    yield found(
        "straight-through",
        run,
        (
            "Nothing passes back through z + (q - z): it is q, and the gradient by z cancels. What comes behind tells "
            f"nothing to {names_of(names)}, of which z is made; other terms of the loss alone train them."
        ),
        (
            "z + (q - z).detach(): the same number, and the gradient of what comes behind passes to z as it is",
            "or, if q alone is to be trained there, write q",
        ),
        evidence={"tensors": float(len(names))},
        layers=names,
        formula=(
            r"\frac{\partial}{\partial z}\big(z + (q - z)\big) = 1 - 1 = 0, \quad"
            r"\frac{\partial}{\partial z}\big(z + \mathrm{detach}(q - z)\big) = 1"
        ),
        severity=unless_it_learns(run, "critical", "warning"),
        chart=GRADIENTS,
    )


def drawn(run: Run) -> Iterator[Finding]:
    names = tuple(str(name) for name in run.meta["drawn"])
    if not names:
        return
    yield found(
        "drawn-without-gradient",
        run,
        (
            f"No gradient passes through what is drawn by chance: {names_of(names)} decide what is drawn, are not told "
            "what the layers behind it need, and only the rest of the loss trains them."
        ),
        (
            "draw as a function of them: z = mu + sigma * torch.randn_like(mu), or rsample() in place of sample()",
            "of units that are 0 or 1: z = p + (torch.bernoulli(p) - p).detach()",
        ),
        evidence={"tensors": float(len(names))},
        layers=names,
        formula=(
            r"z = \mu + \sigma\,\varepsilon,\; \varepsilon \sim \mathcal{N}(0, 1) \;\Rightarrow\; "
            r"\frac{\partial z}{\partial \mu} = 1, \; \frac{\partial z}{\partial \sigma} = \varepsilon"
        ),
        severity=unless_it_learns(run, "critical"),
        chart=GRADIENTS,
    )


def state_cut(run: Run) -> Iterator[Finding]:
    told = run.meta["state_cut"]
    steps, names = (int(told[0]), tuple(str(name) for name in told[1])) if len(told) == 2 else (0, ())
    if not names:
        return
    modules = modules_of(names)
    yield found(
        "state-cut",
        run,
        (
            f"What a step of {names_of(modules)} hands on to the next is cut from the graph at each of {steps} steps: "
            "only the last one is trained, and nothing learns what an earlier one should keep for it."
        ),
        (
            "detach the state between batches or long stretches of a sequence, not between its steps",
            "if one step's gradient is meant, as at a fixed point, take the others under torch.no_grad()",
        ),
        evidence={"steps": float(steps)},
        layers=names,
        severity=unless_it_learns(run, "critical", "warning"),
    )


def restarted(run: Run) -> Iterator[Finding]:
    told = run.meta["restarted"]
    if len(told) != 3:
        return
    steps, zeros, names = int(told[0]), bool(told[1]), tuple(str(name) for name in told[2])
    begin = "zeros" if zeros else "one and the same state"
    yield found(
        "restarted",
        run,
        (
            f"Each of {steps} steps of {names_of(modules_of(names))} begins from {begin}: what a step keeps is given "
            "to none of the next, which know nothing of what came before."
        ),
        (
            "hand the state on: h, c = cell(x, (h, c)) in the loop, or out, state = rnn(x, state)",
            "or give the net the whole sequence in one call: out, last = rnn(sequence, state)",
        ),
        evidence={"steps": float(steps)},
        layers=names,
        formula=r"h_t = f(x_t, h_0) \quad\text{instead of}\quad h_t = f(x_t, h_{t-1})",
        severity=unless_it_learns(run, "critical", "warning"),
    )
