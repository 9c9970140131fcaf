"""The edge of stability on a small tanh network: curvature rises to each optimizer's own limit and hovers there.

Cohen et al., arXiv 2103.00065 (gradient descent 2 / eta, heavy ball 2 (1 + beta) / eta) and 2207.14484 (Adam 38 / eta).
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics.curvature import measure


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data[:300], dtype=torch.float32) / 16
    return x - x.mean(0), F.one_hot(torch.tensor(data.target[:300]), 10).float()


def followed(make, steps: int, every: int) -> tuple[list[float], list[float], list[float]]:
    """Preconditioned curvatures, stability ratios and losses along full-batch training."""
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 10))
    optimizer = make(model.parameters())
    curvatures, ratios, losses, previous = [], [], [], None
    for step in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % every == every - 1:
            rates = [group["lr"] for group in optimizer.param_groups]
            previous = measure(lambda: F.mse_loss(model(x), y), model, optimizer, rates, previous=previous, full=False)
            ratios.append(previous.stability)
            curvatures.append(previous.preconditioned)
    return curvatures, ratios, losses


OPTIMIZERS = {
    "gradient descent": (lambda p: torch.optim.SGD(p, 4.0), 2 / 4.0),
    "heavy ball": (lambda p: torch.optim.SGD(p, 4.0, momentum=0.9), 2 * 1.9 / 4.0),
    "Adam": (lambda p: torch.optim.Adam(p, 1e-2), 38 / 1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_curvature_rises_to_the_limit_and_hovers(name: str):
    make, limit = OPTIMIZERS[name]
    curvatures, ratios, losses = followed(make, steps=450, every=25)
    relative = np.array(curvatures) / limit
    assert relative[0] < 0.9
    assert 0.85 < relative[-8:].mean() < 1.15 and relative[-8:].max() < 1.4
    assert ratios == pytest.approx(relative.tolist(), rel=1e-4)
    assert losses[-1] < 0.5 * losses[0]  # it trains all the while
