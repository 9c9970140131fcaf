"""What the gradient that comes to the model's output tells of its answers: which targets they are compared with.

Nothing shows the loss function, which may be written by hand, but that gradient shows the targets, wherever they are
and whoever compares them (`stats.targets`): what the loss would be if the model gave the same answer to every input,
whether scores are taken for log-probabilities, and whether targets lie where the output's activation cannot come. One
output and one gradient an update.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor import likeness, losspath
from diagnostics.monitor.arguments import tensors_in
from diagnostics.monitor.baseline import Baseline, given
from diagnostics.monitor.distributed import is_dtensor
from diagnostics.monitor.examples import Examples
from diagnostics.monitor.few import Few

MOST = 1 << 22  # numbers in an output: more are held too long for what they tell
Scale = Callable[[], Tensor | None]
BOUNDS = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
_SQUARED, _BINARY = "squared error", "binary cross-entropy of probabilities"
# Errors of each number by itself in which a last function's targets may be out of its reach.
ONE_BY_ONE = {"sigmoid": {_SQUARED}, "tanh": {_SQUARED}, "softmax": {_SQUARED, _BINARY}}
UNREACHABLE: tuple[str, ...] = "unreachable_fraction", "unreachable_error"
TRIES = 3  # measured updates after which no form of loss fits any more


class Answers:
    """The targets of all measured updates, as one form of loss has them.

    They must come from the data: targets that are the same in every batch whatever its inputs, as a discriminator's or
    the pairs of a contrastive loss, do not, and a loss that hovers where a constant answer would put it may be right.
    """

    def __init__(self, scale: Scale, charge: Callable[[float], None], examples: Examples) -> None:
        """`scale`: what a gradient scaler multiplies the loss by, if there is one. `charge` gets the seconds that
        reading a gradient took."""
        self._scale, self._charge, self._examples = scale, charge, examples
        self._forms, self._tries, self._unread = stats.FORMS, 0, 0
        self.of_whole_loss = False  # the form that was chosen, by the update that told
        self._doubts: int | None = 0  # updates since that one that did not fit; None once another did
        self._passes: list[_Pass] = []
        self._given: list[dict[str, Tensor]] = []  # of what each of these forwards was given
        self._batches: list[tuple[int, Tensor]] = []  # size and sum of those that no gradient is asked of
        self._whole: stats.Targets | None = None
        self._baseline = Baseline()
        self._one_size = True  # whether all examples have been of one
        self._first: tuple[stats.Targets, Tensor] | None = None  # of the first batch, and the sum of its inputs
        self._few = Few()
        self._varied: tuple[Tensor, Tensor] | None = None  # whether the targets ever did, and the inputs

    @property
    def fruitless(self) -> bool:
        """Whether no form of loss fits what comes to the model's output, or nothing comes, as to a loss of its own."""
        return not self._forms or (self._whole is None and self._unread >= TRIES)

    @property
    def settled(self) -> bool:
        """Whether one form of loss is left."""
        return len(self._forms) == 1

    def forget(self) -> None:
        """The outputs that no gradient came to."""
        self._passes, self._given, self._batches = [], [], []

    @property
    def batches(self) -> int:
        """How many forwards of this update were given a batch of their own: other examples each time, as many (the last
        may be shorter), and as they are, not to be changed along their gradient."""
        sizes = [size for size, _ in self._batches]
        sums = {float(given) for _, given in self._batches}
        as_large = len(set(sizes[:-1])) == 1 and sizes[-1] <= sizes[0]
        known = len(sizes) == len(self._given) and not any(map(math.isnan, sums))
        return len(sizes) if as_large and known and len(sums) == len(sizes) else 0

    def passed(self, inputs: Any, output: Any) -> None:
        """A training forward ended."""
        dense = [x for x in tensors_in(inputs) if x.numel() and not is_dtensor(x)]
        x = dense[0] if dense else None
        # of inputs that are not seen it is NaN, which nothing equals
        given = torch.full((), torch.nan) if x is None else x.detach().sum().real.float()
        self._given.append({"input_sum": given} | likeness.of_inputs(dense) | self._few.columns(dense))
        if x is not None and x.dim() and not any(each.requires_grad for each in dense):
            self._batches.append((len(x), given))
        found = next(
            (y for y in tensors_in(output) if y.grad_fn is not None and y.dim() and y.is_floating_point()), None
        )
        if found is None or not 0 < found.numel() <= MOST:
            return
        function = losspath.last_function(found)
        if self._forms or function == "relu" or found.dim() == 2 or self._examples.due:
            if self._examples.due:
                self._examples.passed(x, len(found))
            self._passes.append(_Pass(found, x, given.to(found.device), function, self._read))

    def columns(self, loss: Any) -> dict[str, Tensor]:
        """Of this update's batch: what is known of the columns of `scalars` that tell of the answers."""
        passes, given = self._passes, self._given
        self.forget()
        found = self._of_answers(passes, loss)
        return found | given[-1] if given else found

    def _of_answers(self, passes: list["_Pass"], loss: Any) -> dict[str, Tensor]:
        for failure in [each.failure for each in passes if each.failure is not None]:
            raise failure
        if len(passes) != 1 or passes[0].calls != 1:
            self._unread += 1
            return {}
        (one,) = passes
        asked = len(self._forms) == 1 and self._doubts is not None
        if len(self._forms) > 1:
            self._choose(one.found, float(loss), one.slack)
        elif asked:
            self._confirm(one, loss)
        found = self._compared(one, loss, asked) if len(self._forms) == 1 else {}
        if one.first is not None and self.fruitless:
            self._examples.compared(one.first, None)
        found |= {} if one.alike is None else {"equal_outputs": one.alike}
        if one.undecided is not None:
            found["zero_labels"] = stats.labels_of_zero(*one.undecided, torch.as_tensor(loss))
        return found | one.below

    def _compared(self, one: "_Pass", loss: Any, asked: bool) -> dict[str, Tensor]:
        """If the loss is one error against targets and nothing else; or that and other terms, where the targets prove
        themselves. `asked`: the device was waited for in this update, and is not again."""
        targets = next(each for each in one.found if each.form in self._forms)
        loss = torch.as_tensor(loss, device=targets.error.device)
        proven = (targets.error - loss).abs() <= one.slack * loss.abs()
        part = targets.alone & ~proven
        if one.first is not None and bool(proven | part):  # waits
            self._examples.compared(one.first, targets)
        before = self._whole
        targets_vary, inputs_vary = self._add(targets.only(proven | part), one.inputs)
        assert self._whole is not None
        from_data = targets_vary | ~inputs_vary
        known, part, constant = proven & from_data, part & from_data, targets.constant_loss(self._whole, before)
        found = {"constant_loss": torch.where(known, constant, torch.nan)}
        linear = self._baseline.loss(one.rows, targets, known) if one.rows is not None and not asked else None
        if linear is not None:
            found["linear_loss"] = torch.where(known, linear, torch.nan)
        found["partial_loss"] = torch.where(part, targets.error, torch.nan)
        found["partial_constant_loss"] = torch.where(part, constant, torch.nan)
        found["target_spread"] = torch.where(known, self._whole.spread(), torch.nan)
        found["one_class"] = torch.where(proven, self._whole.of_one_class(), torch.nan)
        if targets.log_total is not None:
            found["log_total"] = torch.where(known, targets.log_total, torch.nan)
        if targets.outside is not None:
            found["unreachable_fraction"] = torch.where(proven, targets.outside, torch.nan)
        return found | {name: torch.where(proven, share, torch.nan) for name, share in one.beyond.items()}

    def _read(self, one: "_Pass", output: Tensor, gradient: Tensor) -> None:
        began, scale = time.perf_counter(), self._scale()
        one.first = self._examples.first(output) if self._examples.due else None
        gradient = gradient if scale is None else gradient.float() / scale
        read = [form.read(output, gradient, one.given) for form in self._forms]
        one.found = [each for each in read if each is not None]
        one.alike = likeness.of_answers(output, gradient)
        if len(self._forms) > 1:
            one.undecided = output, gradient
        if one.function == "relu":
            below, error = (output == 0) & (gradient > 0), gradient.float().square()
            one.below = {
                "unreachable_fraction": below.float().mean(),
                "unreachable_error": error.where(below, 0).sum() / error.sum(),
                "cut_off_loss": _cut_off(output, gradient),
            }
        elif len(self._forms) == 1 and self._forms[0].name in ONE_BY_ONE.get(one.function, ()):
            form, bounds = self._forms[0], BOUNDS.get(one.function)
            if bounds:
                shares = stats.beyond(form, output, gradient, *bounds)
            else:
                shares = (stats.of_no_sum(form, output, gradient),)
            one.beyond = dict(zip(UNREACHABLE, shares, strict=False))
        self._charge(time.perf_counter() - began)

    def _choose(self, found: list[stats.Targets], loss: float, slack: float) -> None:
        """The form whose error is the loss, decided by the first update that tells; of log-probabilities of several
        dimensions, all of which fit, that along which each target is one class, or the probabilities sum to 1. Where
        all answers are sure, the loss is linear and more than one form fits: rather one whose targets are
        probabilities. Targets that prove themselves are proof enough, whatever else the loss consists of."""
        self._tries += 1
        told = [torch.stack([each.error.float(), each.alone.float()]) for each in found]
        numbers = torch.stack(told).tolist() if told else []  # one wait
        fits = [abs(error - loss) <= slack * abs(loss) for error, _ in numbers]
        fitting = [
            (not alone, each, fit) for each, (_, alone), fit in zip(found, numbers, fits, strict=True) if alone or fit
        ]
        fitting.sort(
            key=lambda each: (
                each[0],
                each[1].outside is not None and bool(each[1].outside > 0),
                each[1].log_total is not None and bool(each[1].log_total.isnan()),
                each[1].sums_to_one is not None and not bool(each[1].sums_to_one),
            )
        )
        chosen = tuple(each.form for _, each, _ in fitting[:1])
        self.of_whole_loss = bool(fitting) and fitting[0][2]
        self._forms = chosen or (self._forms if self._tries < TRIES else ())

    def _confirm(self, one: "_Pass", loss: Any) -> None:
        """By a second update that fits. An absolute error of answers that are far too large looks like a cross-entropy
        that is sure of all, and comes no nearer to it as they shrink."""
        assert self._doubts is not None
        near = [each.alone | ((each.error - loss).abs() <= one.slack * abs(loss)) for each in one.found]
        fits = bool(torch.stack(near).any()) if near else False  # one wait
        self._doubts = None if fits else self._doubts + 1
        if self._doubts == TRIES:
            self._forms, self._whole, self._unread, self.of_whole_loss = (), None, TRIES, False

    def _add(self, targets: stats.Targets, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._whole is not None and targets.form.classes is None and _width(targets) != _width(self._whole):
            self._one_size = False
        if not self._one_size:
            targets = targets.pooled()
        if self._whole is None or self._first is None or self._varied is None or _width(targets) != _width(self._whole):
            self._whole, self._first, self._varied = targets, (targets, x), (torch.zeros_like(x).bool(), x != x)
        else:
            (first, first_x), (targets_vary, inputs_vary) = self._first, self._varied
            self._whole = self._whole.merged(targets)
            other = (targets.seen.count == first.seen.count) & ~targets.equal(first)  # a last batch may be shorter
            self._varied = targets_vary | other, inputs_vary | (x != first_x)
        return self._varied


class _Pass:
    """One output on its way back: reads its gradient, and lets both go."""

    def __init__(
        self,
        output: Tensor,
        x: Tensor | None,
        inputs: Tensor,
        function: str,
        read: Callable[["_Pass", Tensor, Tensor], None],
    ) -> None:
        """`inputs`: their sum. `function`: what the output comes from."""
        self.function, self.calls, self.found = function, 0, list[stats.Targets]()
        self.below = dict[str, Tensor]()  # shares of a ReLU's outputs that are 0 and would be less, and of the error
        self.beyond = dict[str, Tensor]()  # of targets that a sigmoid, tanh or softmax cannot give, and of the error
        self.alike: Tensor | None = None  # whether the numbers of each answer are all one
        self.undecided: tuple[Tensor, Tensor] | None = None  # output and gradient, while no form of loss is known
        self.first: Tensor | None = None  # rows of the output that are kept
        self.failure: Exception | None = None
        self.slack = stats.rounding(output)
        self.given = x if x is not None and x.numel() == output.numel() else None
        self.inputs = inputs
        self.rows = None if x is None else given(x, output)
        self._read, self._output, self._at = read, output.detach(), output.output_nr
        assert output.grad_fn is not None
        output.grad_fn.register_prehook(self)  # not of the tensor: a hook there would be seen when it is pickled

    @torch.no_grad()
    def __call__(self, gradients: tuple[Tensor | None, ...]) -> None:
        try:
            output, self._output = self._output, None
            gradient = gradients[self._at]
            if gradient is not None and "Batched" in repr(torch._C._dispatch_keys(gradient)):
                return  # those of several losses at once, under `vmap`, which must not outlive it
            self.calls += 1
            if output is not None and gradient is not None:
                self._read(self, output, gradient)
            self.given = None
        except Exception as error:  # inside the user's backward
            self.failure = error


def _cut_off(output: Tensor, gradient: Tensor) -> Tensor:
    """What the examples cost at least for whose class, as scores, a ReLU gives 0: log C each, of C scores none of which
    is lower."""
    classes = output.shape[min(1, output.dim() - 1)]
    return ((output == 0) & (gradient < 0)).float().mean() * classes * math.log(classes)


def _width(targets: stats.Targets) -> int:
    return len(targets.seen.mean)
