"""What a batch's loss would be if the model gave the same answer to every input: the best one for all targets so far.

Nothing shows the loss function, which may be written by hand, but the gradient that comes to the model's output shows
the targets, wherever they are and whoever compares them (`stats.targets`). One output and one gradient an update.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats

MOST = 1 << 22  # numbers in an output: more are held too long for what they tell
Scale = Callable[[], Tensor | None]
TRIES = 3  # measured updates after which no form of loss fits any more


class Constant:
    """The targets of all measured updates, as one form of loss has them.

    They must come from the data: targets that are the same in every batch whatever its inputs, as a discriminator's or
    the pairs of a contrastive loss, do not, and a loss that hovers where a constant answer would put it may be right.
    """

    def __init__(self, scale: Scale, charge: Callable[[float], None]) -> None:
        """`scale`: what a gradient scaler multiplies the loss by, if there is one. `charge` gets the seconds that
        reading a gradient took."""
        self._scale, self._charge = scale, charge
        self._forms, self._tries = stats.FORMS, 0
        self._passes: list[_Pass] = []
        self._whole: stats.Targets | None = None
        self._first: tuple[stats.Targets, Tensor] | None = None  # of the first batch, and the sum of its inputs
        self._varied: tuple[Tensor, Tensor] | None = None  # whether the targets ever did, and the inputs

    def forget(self) -> None:
        """The outputs that no gradient came to."""
        self._passes = []

    def passed(self, inputs: Any, output: Any) -> None:
        """A training forward ended."""
        found = next((y for y in _tensors(output) if y.grad_fn is not None and y.dim() and y.is_floating_point()), None)
        if self._forms and found is not None and 0 < found.numel() <= MOST:
            x = next((x for x in _tensors(inputs) if x.numel()), None)
            self._passes.append(_Pass(found, x, self._read))

    def loss(self, loss: Any) -> Tensor | None:
        """Of this update's batch under the best constant answer, if its loss is one mean error and nothing else."""
        passes, self._passes = self._passes, []
        for failure in [each.failure for each in passes if each.failure is not None]:
            raise failure
        if not self._forms or len(passes) != 1 or passes[0].calls != 1:
            return None
        (one,) = passes
        if len(self._forms) > 1:
            self._choose(one.found, float(loss), one.slack)
        if len(self._forms) != 1:
            return None
        targets = next(each for each in one.found if each.form is self._forms[0])
        loss = torch.as_tensor(loss, device=targets.error.device)
        proven = (targets.error - loss).abs() <= one.slack * loss.abs()
        targets_vary, inputs_vary = self._add(targets.only(proven), one.inputs)
        assert self._whole is not None
        return torch.where(proven & (targets_vary | ~inputs_vary), targets.constant_loss(self._whole), torch.nan)

    def _read(self, output: Tensor, gradient: Tensor) -> list[stats.Targets]:
        began, scale = time.perf_counter(), self._scale()
        gradient = gradient if scale is None else gradient.float() / scale
        read = [form.read(output, gradient) for form in self._forms]
        self._charge(time.perf_counter() - began)
        return [each for each in read if each is not None]

    def _choose(self, found: list[stats.Targets], loss: float, slack: float) -> None:
        """The form whose error is the loss, decided by the first update that tells."""
        self._tries += 1
        errors = torch.stack([each.error.double() for each in found]).tolist() if found else []  # one wait
        near = [abs(error - loss) <= slack * abs(loss) for error in errors]
        fitting = [each.form for each, proven in zip(found, near, strict=True) if proven]
        self._forms = tuple(fitting[:1]) or (self._forms if self._tries < TRIES else ())

    def _add(self, targets: stats.Targets, x: Tensor) -> tuple[Tensor, Tensor]:
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

    def __init__(self, output: Tensor, x: Tensor | None, read: Callable[[Tensor, Tensor], list[stats.Targets]]) -> None:
        self.calls, self.found = 0, list[stats.Targets]()
        self.failure: Exception | None = None
        self.slack = stats.rounding(output)
        # of inputs that are not seen it is NaN, which nothing equals
        self.inputs = torch.full((), torch.nan, device=output.device) if x is None else x.detach().sum().float()
        self._read, self._output, self._at = read, output.detach(), output.output_nr
        assert output.grad_fn is not None
        output.grad_fn.register_prehook(self)  # not of the tensor: a hook there would be seen when it is pickled

    @torch.no_grad()
    def __call__(self, gradients: tuple[Tensor | None, ...]) -> None:
        try:
            self.calls += 1
            output, self._output = self._output, None
            gradient = gradients[self._at]
            if output is not None and gradient is not None:
                self.found = self._read(output, gradient)
        except Exception as error:  # inside the user's backward
            self.failure = error


def _width(targets: stats.Targets) -> int:
    return len(targets.seen.mean)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Dense ones of an output or of arguments, as deep as containers go."""
    if isinstance(values, Tensor):
        if values.layout == torch.strided and not values.is_nested and not values.is_meta:
            yield values
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
