"""Whether another network is trained beside the watched one: its updates change the watched one's loss as well; and
which of the watched one's own parameters another optimizer has."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

LOOKS = 20  # at parameters; what takes part in the loop is there within its first updates


class Beside:
    """Parameters that a loss depends on, or that learn through the model, and that neither the model nor its optimizer
    has; found once another optimizer steps with one of them. A frozen network and an average of weights never are."""

    def __init__(
        self,
        optimizer: Optimizer,
        tensors: Callable[[], Mapping[str, Tensor]],
        guarded: Callable[[str], Any],
        note: Callable[..., None],
    ) -> None:
        """`tensors()`: the model's and its optimizer's; `note`: what is found is written with the run."""
        self._optimizer, self._tensors, self._guarded, self._note = optimizer, tensors, guarded, note
        self._met = dict[int, weakref.ref]()
        self._outside = dict[int, str]()  # the model's own that its optimizer does not have
        self._elsewhere = list[str]()
        self._looks = 0
        self._hook: Any = None

    def meet(self, tensors: Iterable[Tensor]) -> None:
        """Not gone through any more once there were enough looks, or one is found."""
        self._looks += 1
        if self._looks > LOOKS:
            return
        known = {id(tensor): name for name, tensor in self._tensors().items()}
        strangers = (each for each in tensors if isinstance(each, nn.Parameter) and id(each) not in known)
        self._met |= {id(each): weakref.ref(each) for each in strangers}
        if self._looks == 1:
            inside = set(map(id, _parameters(self._optimizer)))
            self._outside = {key: name for key, name in known.items() if key not in inside}
        if (self._met or self._outside) and self._hook is None:
            self._hook = register_optimizer_step_post_hook(self._stepped)

    def close(self) -> None:
        self._met, self._outside = {}, {}
        if self._hook is not None:
            self._hook.remove()

    @_disable_dynamo
    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not (self._met or self._outside) or optimizer is self._optimizer:  # of a frozen network each step comes here
            return
        with self._guarded("networks beside"):
            theirs = _parameters(optimizer)
            if found := [self._outside.pop(id(each)) for each in theirs if id(each) in self._outside]:
                self._elsewhere += found
                self._note(optimized_elsewhere=self._elsewhere)
            if self._met and any(map(self._is_met, theirs)):
                self._met, self._looks = {}, LOOKS  # the hook stays: PyTorch is going through all of them
                self._note(trained_beside=True)

    def _is_met(self, parameter: Tensor) -> bool:
        met = self._met.get(id(parameter))
        return met is not None and met() is parameter


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"]]
