"""Norms that are given so few numbers that little is left of them, or that places share whose numbers differ."""

from collections.abc import Iterator

from diagnostics.rules._finding import Finding, Severity
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import counted, names_of, number, tex
from diagnostics.run import Run


def norms_of_few(run: Run) -> Iterator[Finding]:
    yield from _found(
        run,
        "norms_of_one",
        "norm-of-one",
        "one number at a time: less its own mean nothing is left of it, and all inputs give the same output, the bias.",
        ("normalize over the features, nn.LayerNorm(features), or move the axis of the features to the end first",),
        r"\frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + \epsilon}} = 0",
        "warning",  # of a part of the model, whatever the rest does
    )
    yield from _found(
        run,
        "norms_of_two",
        "norm-of-two",
        "two numbers at a time: the larger becomes 1 and the smaller -1, whatever they were, and where they are nearly "
        "equal the gradient is huge.",
        (
            "batch norm: use batches of 16 or more, or a norm that does not need a batch, nn.LayerNorm or nn.GroupNorm",
            "layer and group norm: normalize over more features at a time",
        ),
        r"\frac{x_1 - \bar x}{\sigma} = \frac{(x_1 - x_2) / 2}{|x_1 - x_2| / 2} = \pm 1",
        "warning" if _most_batch_norms(run, "norms_of_two") else "info",
    )


def _most_batch_norms(run: Run, entry: str) -> bool:
    """Whether those are half of all batch norms at least, not the one behind a pooling: the whole network then sees
    which of two examples is larger, and no more."""
    norms = {str(each["name"]) for each in run.meta["modules"] if str(each["type"]).startswith("BatchNorm")}
    return len(norms & set(map(str, run.meta.get(entry) or []))) > len(norms) / 2


def across_batch(run: Run) -> Iterator[Finding]:
    if not run.meta["across_batch"]:
        return
    yield found(
        "norm-across-batch",
        run,
        (
            "The loss takes a softmax of inner products of vectors that were made length 1 along the batch: each "
            "number is divided by those of the other examples, and the vectors are of any length, the shorter the "
            "larger the batch."
        ),
        ("normalize each example along its features: F.normalize(x, dim=1), or dim=-1; dim=0 is the batch",),
        formula=r"\sum_n x_{nd}^2 = 1 \text{ for each } d, \quad\text{not}\quad \sum_d x_{nd}^2 = 1",
        severity=unless_it_learns(run, "warning"),
    )


def short_memory(run: Run, *, off: float = 0.1) -> Iterator[Finding]:
    """`off`: of a deviation, the error of a running mean that is made of so few numbers."""
    told = [(name, momentum, count, _error(momentum, count)) for name, momentum, count in run.meta["short_memory"]]
    bad = [each for each in told if each[3] > off]
    if not bad:
        return
    _, momentum, count, error = max(bad, key=lambda each: each[3])
    names = tuple(str(each[0]) for each in bad)
    yield found(
        "short-memory",
        run,
        (
            f"The running statistics of {counted(len(names), 'batch norm')} tell of little more than the last batch: "
            f"with momentum {number(momentum)} each update replaces {number(100 * momentum)} % of them. Of {count} "
            f"numbers a channel their mean is off by {number(error)} deviations, and in evaluation mode so is what "
            "follows."
        ),
        (
            "momentum=0.1 or less, nn.BatchNorm1d(features, momentum=0.1): in PyTorch it is the weight of the new "
            "batch, in Keras and TensorFlow that of what is kept",
        ),
        evidence={"momentum": momentum, "numbers a channel": float(count), "error of the mean": error},
        layers=names,
        formula=r"\hat\mu \leftarrow (1 - m)\,\hat\mu + m\,\mu_{\text{batch}}, \quad \operatorname{var}(\hat\mu) = "
        r"\frac{m}{2 - m}\,\frac{\sigma^2}{n}",
        severity="warning",
    )


def by_epsilon(run: Run, *, kept: float = 0.5) -> Iterator[Finding]:
    """`kept`: of the variance 1 that a norm is to give; half of it in seven norms leaves 1 % of a signal's square."""
    told = [(str(name), float(epsilon), float(left)) for name, epsilon, left in run.meta["norm_epsilons"]]
    bad = [each for each in told if each[2] < kept]
    if not bad:
        return
    name, epsilon, left = min(bad, key=lambda each: each[2])
    yield found(
        "norm-epsilon",
        run,
        (
            f"{counted(len(bad), 'batch norm')} {'does' if len(bad) == 1 else 'do'} not normalize: an epsilon of "
            f"{number(epsilon)} is added to the variance, and what {name} gives has a variance of {number(left)} "
            "instead of 1."
        ),
        (
            f"leave epsilon at 1e-5: in nn.BatchNorm1d(features, {number(epsilon)}) the second argument is eps, not "
            f"momentum; write momentum={number(min(epsilon, 0.1))}",
        ),
        evidence={"epsilon": epsilon, "variance of what it gives": left, "norms": float(len(bad))},
        layers=tuple(each[0] for each in bad),
        formula=r"\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}, \quad \epsilon = " + tex(epsilon),
        severity=unless_it_learns(run, "critical"),
    )


def _error(momentum: float, count: int) -> float:
    """Standard error of an exponential average of means of `count` numbers each, in deviations."""
    return (min(momentum, 1.0) / (2 - min(momentum, 1.0)) / count) ** 0.5


def shared_norms(run: Run, *, apart: float = 0.5) -> Iterator[Finding]:
    """`apart`: deviations; half of one is far more than batches differ by, and puts a third of the numbers that a
    rectifier should let through on its other side."""
    told = [(str(name), int(uses), float(distance)) for name, uses, distance in run.meta["shared_norms"]]
    for name, uses, distance in told:
        if not distance >= apart:
            continue
        yield found(
            "shared-norm",
            run,
            (
                f"{name} is used {uses} times in one forward, at places whose numbers differ: those of one lie "
                f"{number(distance)} deviations from what all have together, and in evaluation that is what each is "
                "normalized by. There the network is another than the one that is trained."
            ),
            ("give each place a batch norm of its own: its scale and shift are learned for one place too",),
            evidence={"uses": float(uses), "distance": distance},
            layers=(name,),
            formula=r"\hat\mu = \tfrac1k \sum_j \mu_j \ne \mu_j, \qquad \hat\sigma^2 \ne \sigma_j^2",
            severity="warning",
        )


def _found(
    run: Run, entry: str, cause: str, text: str, remedies: tuple[str, ...], formula: str, otherwise: Severity
) -> Iterator[Finding]:
    """`otherwise`: its severity in a run that learns."""
    layers = tuple(str(name) for name in run.meta.get(entry) or [])
    if layers:
        yield found(
            cause,
            run,
            f"{names_of(layers)} {'normalizes' if len(layers) == 1 else 'normalize'} {text}",
            remedies,
            evidence={"norms": float(len(layers))},
            layers=layers,
            formula=formula,
            severity=unless_it_learns(run, "critical", otherwise),
        )
