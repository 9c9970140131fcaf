"""Weights of classes beside how frequent the classes are: what should balance them, and what makes it worse."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

COUNTS = torch.tensor([0.9, 0.06, 0.04])
INVERSE = 1 / (3 * COUNTS)


def of_classes(*weight: float, loss: Callable = F.cross_entropy) -> Callable[[Tensor, Tensor], Tensor]:
    scores = F.log_softmax if loss is F.nll_loss else lambda y, dim: y
    return lambda y, t: loss(scores(y, dim=1), t, torch.tensor(weight) if weight else None)


def of_two(pos_weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    weight = torch.tensor(pos_weight)
    return lambda y, t: F.binary_cross_entropy_with_logits(y[:, 0], (t > 0).float(), pos_weight=weight)


def by_hand(*weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda y, t: (torch.tensor(weight)[t] * F.cross_entropy(y, t, reduction="none")).mean()


def of_two_by_hand(positive: float, negative: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(y: Tensor, t: Tensor) -> Tensor:
        labels = (t > 0).float()
        weight = torch.where(labels == 1, positive, negative)
        return (F.binary_cross_entropy_with_logits(y[:, 0], labels, reduction="none") * weight).mean()

    return loss


def of_each(y: Tensor, t: Tensor) -> Tensor:
    labels = (t > 0).float()
    return F.binary_cross_entropy_with_logits(y[:, 0], labels, 0.9 - 0.8 * labels)


def of_examples(y: Tensor, t: Tensor) -> Tensor:
    """As of hard examples, or of how sure a label is."""
    return (F.cross_entropy(y, t, reduction="none") * (COUNTS[t] + 0.1 * torch.rand(len(t)))).mean()


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("loss", "told"),
    [
        pytest.param(of_classes(*COUNTS.tolist()), True, id="frequencies"),
        pytest.param(of_classes(*INVERSE.flip(0).tolist(), loss=F.nll_loss), True, id="inverses in the wrong order"),
        pytest.param(of_classes(*INVERSE.tolist()), False, id="inverses"),
        pytest.param(of_classes(*INVERSE.sqrt().tolist(), loss=F.nll_loss), False, id="their roots"),
        pytest.param(of_classes(), False, id="none"),
        pytest.param(of_classes(1.0, 1.0, 0.0), False, id="a class that is left out"),
        pytest.param(of_classes(2.0, 1.0, 1.0), False, id="the price of a mistake"),
        pytest.param(by_hand(*COUNTS.tolist()), True, id="frequencies by hand"),
        pytest.param(by_hand(*INVERSE.tolist()), False, id="inverses by hand"),
        pytest.param(of_two_by_hand(0.1, 0.9), True, id="two the wrong way by hand"),
        pytest.param(of_two_by_hand(0.9, 0.1), False, id="two by hand"),
        pytest.param(of_each, True, id="a weight of each example"),
        pytest.param(of_examples, False, id="of examples"),
        pytest.param(of_two(1 / 9), True, id="positives over negatives"),
        pytest.param(of_two(9.0), False, id="negatives over positives"),
    ],
)
def test_weights_that_make_an_imbalance_worse(loss: Callable, told: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path) as monitor:
        for _ in range(30):
            x, t = torch.randn(64, 6), torch.multinomial(COUNTS, 64, replacement=True)
            optimizer.zero_grad()
            value = loss(model(x), t)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda x=x, t=t: loss(model(x), t))
    run = diagnostics.load(tmp_path)
    found = [each for each in diagnostics.diagnose(run).findings if each.cause == "class-weights"]
    assert [each.severity for each in found] == ["warning"] * told
    if told:
        weights, counts = run.meta["class_weights"]
        assert sum(counts) % 64 == 0 and counts[0] == max(counts)  # whole batches
        assert found[0].evidence["times the weight"] == pytest.approx(weights[0] / weights[counts.index(min(counts))])
