"""What a forward does that nobody meant: layers made anew each time, evaluation mode while training, targets in
sight."""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import names_of, number, tex
from diagnostics.run import Run


def made_in_forward(run: Run) -> Iterator[Finding]:
    owners = tuple(str(name) for name in run.meta["made_in_forward"])
    if not owners:
        return
    within = names_of(tuple(name for name in owners if name)) or "the model"
    yield found(
        "made-in-forward",
        run,
        (
            f"The forward of {within} makes parameters of its own and throws them away: each call makes new ones, and "
            "no update ever reaches them."
        ),
        ("make the layer once, in __init__, as an attribute of the module: self.out = nn.Linear(...)",),
        evidence={"modules": float(len(owners))},
        severity=unless_it_learns(run, "critical"),
        chart=GRADIENT_NORM,
    )


def looks_ahead(run: Run) -> Iterator[Finding]:
    """However low the loss: it is low because the answers are given away."""
    share = float(run.meta["looks_ahead"])
    if not share:
        return
    yield found(
        "looks-ahead",
        run,
        (
            "The model is to predict the next token, and sees it: the targets are its own inputs, one place on, and "
            f"the answer at a place depends on the token after it {number(share)} times as much as on the one before. "
            "It can bring the loss down by copying, which is worth nothing where there is no next token yet."
        ),
        (
            "give attention a causal mask: is_causal=True in F.scaled_dot_product_attention, or "
            "mask=nn.Transformer.generate_square_subsequent_mask(length), of a decoder as tgt_mask",
            "bidirectional=False in a recurrent net; in a convolution pad on the left alone",
        ),
        evidence={"derivative by the next token over the one before": share},
        formula=r"\frac{\partial a_t}{\partial x_{t+1}} \ne 0 \quad\text{where } x_{t+1} \text{ is the target of } a_t",
        chart=GRADIENT_NORM,
    )


def shifted_twice(run: Run) -> Iterator[Finding]:
    if not run.meta["shifted_twice"]:
        return
    yield found(
        "shifted-twice",
        run,
        (
            "The targets are the model's own inputs two places on: it is to tell the token after the next, and never "
            "learns the next one. Labels were probably shifted twice, by the data set and again in the model or the "
            "loss."
        ),
        (
            "shift once: models that compute their loss from labels often shift these themselves, and want a copy of "
            "the inputs, labels=input_ids",
        ),
        severity="warning",
    )


def unshifted(run: Run) -> Iterator[Finding]:
    """However low the loss, as of what looks ahead."""
    if not run.meta["unshifted"]:
        return
    yield found(
        "unshifted",
        run,
        (
            "The model is given its own targets: each is the token at the same place, and the answer there depends on "
            "it and on those before. Copying it is all there is to learn; the next token, which is what the model is "
            "asked for later, is never learned."
        ),
        (
            "shift by one: inputs tokens[:, :-1], targets tokens[:, 1:]",
            "give a decoder the targets one place later, behind a start token: torch.cat((start, y[:, :-1]), dim=1)",
        ),
        formula=r"\text{target of } a_t\!: \; x_t \quad\text{instead of}\quad x_{t+1}",
        chart=GRADIENT_NORM,
    )


def padding_alone(run: Run) -> Iterator[Finding]:
    told = run.meta["padding_alone"]
    if len(told) != 2:
        return
    padding, kinds = int(told[0]), int(told[1])
    left_out = f"{kinds} different tokens, and token {padding} is" if padding >= 0 else f"{kinds} rows, and zeros are"
    is_padding = f"tokens == {padding}" if padding >= 0 else "(x == 0).all(-1)"
    yield found(
        "mask-inverted",
        run,
        (
            f"Attention sees the padding alone: its mask leaves out {left_out} all that it leaves in sight. The mask "
            "says the opposite of what is meant."
        ),
        (
            f"invert it: key_padding_mask = {is_padding}, in which True is left out, as in masked_fill; in "
            "F.scaled_dot_product_attention, and in what tokenizers make, True takes part",
        ),
        evidence={"kinds of tokens left out": float(kinds)},
        severity=unless_it_learns(run, "critical", "warning"),
        chart=GRADIENT_NORM,
    )


def dropout_on_output(run: Run) -> Iterator[Finding]:
    told = run.meta["dropped_output"]
    if len(told) != 2:
        return
    share, numbers = float(told[0]), bool(told[1])
    them = "numbers" if numbers else "scores"
    yield found(
        "dropout-on-output",
        run,
        (
            f"Dropout follows the last layer: {number(100 * share)} % of the {them} that the loss compares with "
            f"targets are 0, whatever the network answered, and the rest is {number(1 / max(1 - share, 0.01))} times "
            "its answer."
        ),
        ("end the model with the last layer: dropout belongs between hidden layers",),
        evidence={"share set to 0": share},
        formula=(
            r"\mathbb{E}\,(d\,y - t)^2 = (y - t)^2 + \tfrac{p}{1-p}\,y^2 \;\text{ is least at }\; y = (1 - p)\,t, "
            r"\text{ where } p\,t^2 \text{ is left}"
            if numbers
            else ""
        ),
        # Scores outlive it: the largest is often still the largest.
        severity="warning" if numbers else unless_it_learns(run, "warning"),
    )


def dropout_noise(run: Run, *, most: float = 0.5, looks: int = 3) -> Iterator[Finding]:
    """To the last look, in a run that learned little: untrained answers differ little, and are drowned by less."""
    shares = signals.column(run, "dropout_noise")[1][-looks:]
    if len(shares) < looks or not (shares > most).all() or signals.has_learned(run):
        return
    dropped, share = float(run.meta["dropout"]), float(shares[-1])
    yield found(
        "dropout-noise",
        run,
        (
            f"Dropout of {number(dropped)} drowns the answers: {number(100 * share)} % of how they differ from example "
            "to example is what it draws, and the rest what the model is given. p is the share that is set to 0, not "
            "the share that is kept."
        ),
        (f"where {number(dropped)} is to be kept, set p = {number(1 - dropped)}; usual are 0.1 to 0.5",),
        evidence={"share set to 0": dropped, "share of the difference between answers that is drawn": share},
        formula=(
            r"\operatorname{var}\!\left(\tfrac{d}{1-p}\,x\right) = \tfrac{p}{1-p}\,x^2 = "
            rf"{tex(dropped / max(1 - dropped, 1e-3))}\,x^2"
        ),
        severity="warning",
        chart=Chart(
            "line", "scalars", ("dropout_noise",), "Share of the difference between answers that dropout draws"
        ),
    )


def derivative_without_graph(run: Run) -> Iterator[Finding]:
    share = float(run.meta["cut_derivative"])
    if not share:
        return
    yield found(
        "derivative-without-graph",
        run,
        (
            "A term of the loss is made of derivatives that were taken without their graph: it is a constant to the "
            f"optimizer, which nothing brings down. At first it was {number(100 * share)} % of the loss."
        ),
        ("torch.autograd.grad(..., create_graph=True), in every derivative that the loss is made of",),
        evidence={"share of the loss": share},
        severity=unless_it_learns(run, "critical", "warning"),
        chart=GRADIENT_NORM,
    )


def left_in_evaluation(run: Run) -> Iterator[Finding]:
    """Of a run that goes on learning it is information: some tune with a norm's statistics held."""
    told = run.meta["evaluation"]
    layers = tuple(str(name) for name in told.get("modules") or [])
    if not layers:
        return
    yield found(
        "evaluation-mode",
        run,
        (
            f"Since step {int(told['step'])} the model is trained in evaluation mode: {names_of(layers)} "
            "no longer see the batch. A batch norm uses the statistics that it had, however far the weights move on; "
            "dropout is off."
        ),
        ("call model.train() before each epoch, and again after each evaluation",),
        evidence={"modules": float(len(layers))},
        step=int(told["step"]),
        layers=layers,
        severity=unless_it_learns(run, "critical"),
        chart=GRADIENT_NORM,
    )
