"""Whether maps lie as the pictures do that they belong to: the statistic, against arrays that NumPy turned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.placed import Maps, Placed

N, SIDE = 48, 24
TURNS = {
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned upside down": lambda x: np.rot90(x, 2),
    "with rows and columns exchanged": np.transpose,
    "mirrored along the other diagonal": lambda x: np.rot90(x, 2).T,
}


def pictures_and_masks(n: int = N) -> tuple[Tensor, Tensor]:
    """Discs, one or two in each, brighter or darker than a ground with noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((n, 1, SIDE, SIDE), np.float32)
    for mask in masks:
        for _ in range(rng.integers(1, 3)):
            (row, column), radius = rng.uniform(4, SIDE - 4, 2), rng.uniform(2, 5)
            mask[0][(y - row) ** 2 + (x - column) ** 2 < radius**2] = 1
    sign = rng.choice([-1.0, 1.0], (n, 1, 1, 1))
    pictures = (sign * masks + rng.normal(0, 0.5, masks.shape)).astype(np.float32)
    return torch.from_numpy(pictures), torch.from_numpy(masks)


def shares(pictures: Tensor, masks: Tensor) -> dict[str, tuple[float, float]]:
    fit = stats.fits(stats.small_map(pictures), stats.small_map(masks))
    groups = stats.placements(square=True)
    return {name: tuple(map(float, stats.related(fit, chosen))) for name, chosen in groups.items()}


def test_fits_are_those_of_least_squares():
    pictures, masks = pictures_and_masks(3)
    small = stats.small_map(pictures), stats.small_map(masks)
    fit = stats.fits(*small)
    x = small[0][1].double()
    across, down = torch.zeros_like(x), torch.zeros_like(x)
    across[..., :-1], down[..., :-1, :] = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
    design = torch.stack([torch.ones_like(x), x, (across**2 + down**2).sqrt()], -1).reshape(-1, 3).numpy()
    for place, turn in ((0, np.asarray), (1, np.fliplr), (3, TURNS["turned upside down"]), (4, np.transpose)):
        target = turn(small[1][2, 0].double().numpy()).reshape(-1)
        residual = np.linalg.lstsq(design, target, rcond=None)[1][0]
        assert float(fit[1, 2, place]) == pytest.approx(1 - residual / ((target - target.mean()) ** 2).sum(), abs=1e-4)


def test_as_given_is_the_larger_where_targets_lie_right():
    for best, given in shares(*pictures_and_masks()).values():
        assert given > best > 0.05


@pytest.mark.parametrize("name", TURNS)
def test_a_turned_target_fits_the_other_way(name):
    pictures, masks = pictures_and_masks()
    turned = torch.from_numpy(np.stack([TURNS[name](mask[0].numpy()) for mask in masks])[:, None].copy())
    best, given = shares(pictures, turned)[name]
    assert best > 0.05 and given < -0.2


def test_a_flip_drawn_for_each_leaves_nothing_of_the_given_placement():
    pictures, masks = pictures_and_masks()
    half = torch.arange(N)[:, None, None, None] % 2 == 0
    best, given = shares(pictures, torch.where(half, masks.flip(-1), masks))["mirrored left to right"]
    assert best > 0.05 and abs(given) < best / 2


def test_targets_of_others_are_not_related():
    pictures, masks = pictures_and_masks(400)
    assert all(abs(best) < 0.05 and abs(given) < 0.05 for best, given in shares(pictures, masks.roll(7, 0)).values())


LOSSES = {
    "function": lambda z, t: F.binary_cross_entropy_with_logits(z, t),
    "by name": lambda z, t: F.mse_loss(target=t, input=z),
    "written out": lambda z, t: (z - t).square().mean(),
    "target first": lambda z, t: (t - z).square().mean(),
    "overlap": lambda z, t: 1 - 2 * (z.sigmoid() * t).sum() / (z.sigmoid().sum() + t.sum()),
    "classes": lambda z, t: F.cross_entropy(torch.cat([z, 0 * z], 1), (1 - t[:, 0]).long()),
    "overlap and function": lambda z, t: (z.sigmoid() * t).mean() + F.binary_cross_entropy_with_logits(z, t),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_map_of_a_loss_is_found(name):
    x, t = pictures_and_masks(8)
    z = x.clone().requires_grad_()
    with Maps() as maps:
        LOSSES[name](z, t)
    assert maps.found is not None
    answer, target = maps.found
    assert answer.shape[2:] == z.shape[2:] and any(torch.equal(t, each[:, None].float()) for each in target.unbind(1))


def test_what_was_looked_at_is_not_counted_again_nor_when_it_is_flipped():
    x, t = pictures_and_masks(8)
    placed = Placed()
    assert placed.due(1, x) and not placed.due(1, x)
    names, columns = placed.rows(x, (t, t))
    assert len(names) == 9 and columns["examples"] == [8] * 9
    assert placed.rows(x, (t, t)) == placed.rows(x.flip(-1), (t.flip(-1), t.flip(-1))) == ([], {})
    assert placed.due(2, x)


@pytest.mark.parametrize("target", [None, torch.zeros(8, 1, SIDE, SIDE // 2)])
def test_without_a_map_of_the_pictures_shape_it_is_not_asked_again(target):
    x, _ = pictures_and_masks(8)
    placed = Placed()
    assert placed.rows(x, None if target is None else (x, target)) == ([], {})
    assert not placed.due(5, x)


def test_one_that_is_wider_than_high_has_no_turns():
    x, t = (each[..., :16, :] for each in pictures_and_masks(8))
    names, _ = Placed().rows(x, (t, t))
    assert names == list(stats.placements(square=False)) and len(names) == 4


@pytest.mark.parametrize("place", range(3))
def test_what_is_not_finite_is_left_out(place):
    given = [*pictures_and_masks(8), pictures_and_masks(8)[0]]
    given[place][3, 0, 5, 5] = torch.nan
    x, t, answer = given
    assert Placed().rows(x, (answer, t)) == ([], {})
