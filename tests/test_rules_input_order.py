"""Inputs whose numbers lie in memory as those of another shape would."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import diagnostics
from diagnostics.monitor.order import meant

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def series(n=48, channels=6, times=42):
    """Channels of sines that start anywhere, each example's of one frequency, with noise."""
    draw = torch.Generator().manual_seed(0)
    phase, pace = (torch.rand(n, count, 1, generator=draw) for count in (channels, 1))
    waves = torch.sin(2 * torch.pi * (phase + torch.arange(times) * (0.05 + 0.05 * pace)))
    return waves + 0.2 * torch.randn(n, channels, times, generator=draw)


def days(count, kinds, n=48):
    """(n, days, hours, kinds): daily profiles of a peak, each day and kind of its own height; last the hour."""
    draw = torch.Generator().manual_seed(0)
    hours = torch.arange(24.0)
    heights = torch.rand(n, count, 1, kinds, generator=draw)
    profile = heights * torch.exp(-(((hours - 15) / 4) ** 2))[:, None]
    return torch.cat([profile[..., :-1], (hours / 24)[:, None].expand(n, count, 24, 1)], -1)


def pictures(n=32, size=16):
    """Coloured spots in front of a colour."""
    draw = torch.Generator().manual_seed(0)
    place, colours = torch.rand(n, 2, 1, 1, generator=draw) * size, torch.rand(2, n, 3, 1, 1, generator=draw)
    rows, columns = torch.arange(size)[:, None], torch.arange(size)
    spot = torch.exp(-((rows - place[:, 0]) ** 2 + (columns - place[:, 1]) ** 2) / 20)[:, None]
    return colours[0] * spot + colours[1] * (1 - spot)


def digits():
    images = torch.tensor(load_digits().images, dtype=torch.float32)
    return images[torch.randperm(len(images))][:, None]


def noisy(x):
    """Of all strengths, as a diffusion model is given."""
    share = torch.linspace(0, 1, len(x))[:, None, None, None]
    return (1 - share) * x + share * torch.randn_like(x)


def sounds(n=32):
    """Spectrograms of noise, and in every fourth a few pitches that hum all along."""
    heard = torch.arange(n)[:, None, None, None] % 4 == 0
    hums = heard & (torch.rand(n, 1, 32, 1) < 0.2)
    return 1.5 * hums + torch.randn(n, 1, 32, 40)


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        (lambda: series().reshape(48, 42, 6), (48, 6, 42)),
        (lambda: series().transpose(1, 2), None),
        (series, None),
        (lambda: series(times=37).reshape(48, 37, 6), (48, 6, 37)),
        (lambda: days(14, 7).flatten(1, 2), None),  # hours by day of the week: 336 of seven kinds of numbers
        (lambda: pictures(48, 24).flatten(2).transpose(1, 2), None),  # tokens of pixels, whose rows end at those places
        (lambda: pictures(48, 8).repeat(1, 3, 1, 1)[:, :8].flatten(2).transpose(1, 2), None),
        (lambda: series(times=36).reshape(48, 36, 6), None),  # six rows of six pixels might end there
        (lambda: series(channels=2).reshape(48, 42, 2), None),  # a single step tells nothing
        (lambda: series(n=4).reshape(4, 42, 6), None),
        (lambda: series(channels=1, times=252).reshape(48, 42, 6), None),  # patches of one series
        (lambda: series(channels=42, times=6).reshape(48, 42, 6), None),
        (lambda: torch.randn(48, 6, 42).reshape(48, 42, 6), None),  # nothing is alike in noise
        (lambda: torch.zeros(48, 36, 6), None),
        (lambda: pictures().permute(0, 2, 3, 1).reshape(32, 3, 16, 16), (32, 16, 16, 3)),
        (pictures, None),
        (lambda: digits().permute(2, 3, 1, 0).reshape(-1, 1, 8, 8)[torch.randperm(1797)[:32]], ()),
        (lambda: digits()[:32], None),
        (lambda: noisy(digits()[:32]), None),
        (lambda: sounds()[..., torch.randperm(40)], None),
        (lambda: sounds(n=64)[:, :, torch.randperm(32)].transpose(2, 3), None),
        (lambda: digits()[torch.randperm(1797)].flatten()[torch.randperm(64 * 1797)].view(-1, 1, 8, 8)[:32], None),
        (lambda: torch.rand(32, 1, 1, 1) + torch.randn(32, 1, 7, 7), None),  # few numbers beside each other
        (lambda: F.one_hot(torch.randint(64, (32,)), 64).float().view(32, 1, 8, 8), None),  # a place on a board
        (lambda: pictures()[:, :1].expand(-1, 3, -1, -1), None),
        (lambda: pictures().repeat_interleave(3, 3), None),  # of coarse pixels
        (lambda: torch.randn(32, 3, 16, 16), None),
        (lambda: ((torch.arange(16)[:, None] + torch.arange(16)) % 4 < 2).float().expand(32, 4, 16, 16), None),
        (lambda: torch.randn(32, 42, 6).to_sparse(), None),
        (lambda: torch.randn(0, 36, 6), None),
        (lambda: torch.tensor(1.0), None),
        (lambda: torch.full((32, 42, 6), torch.nan), None),
        (lambda: pictures().permute(0, 2, 3, 1), None),
        (lambda: torch.randint(9, (48, 36, 6)), None),
    ],
)
def test_in_which_order_inputs_lay_in_memory(inputs, shape):
    torch.manual_seed(0)
    assert meant(inputs()) == shape


@pytest.mark.exhaustive
@pytest.mark.parametrize("scrambled", [True, False])
def test_inputs_that_a_view_gave_their_shape(scrambled, tmp_path):
    """Which of two channels is ahead, from (batch, channel, time): the recurrent net wants (batch, time, channel)."""
    x = series(n=600)
    y = (x[:, 0] * x[:, 1]).mean(1) > 0
    x = x.reshape(600, 42, 6) if scrambled else x.transpose(1, 2)
    torch.manual_seed(2)
    model, head = nn.GRU(6, 16, batch_first=True), nn.Linear(16, 2)
    model.add_module("head", head)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY, curvature_every=30) as monitor:
        for at in [torch.randperm(600)[:32] for _ in range(60)]:

            def loss_of(at=at):
                return F.cross_entropy(head(model(x[at])[1][0]), y[at].long())

            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            monitor.step(loss, loss_of)
    run = diagnostics.load(tmp_path / "run")
    assert run.table("events").empty
    found = [each for each in diagnostics.diagnose(run).findings if each.kind == "wiring"]
    assert [(each.severity, each.cause) for each in found] == ([("warning", "scrambled-view")] if scrambled else [])
    assert not scrambled or ("(32, 42, 6)" in found[0].summary and "(32, 6, 42)" in found[0].summary)
