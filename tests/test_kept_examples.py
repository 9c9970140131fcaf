"""Examples that `watch(..., examples=N)` keeps: those of the batch, whatever compares them; and their pictures."""

import base64
import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import diagnostics
from diagnostics import stats
from diagnostics.charts import examples, rasters
from diagnostics.run import Run

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = list[tuple[Tensor, Tensor]]
ROWS = 12
ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def train(path: Path, model: nn.Module, loss: Loss, batches: Batches, kept: int = 3, closure: bool = True) -> Run:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    measured = {"every": 1, "curvature_every": 0, "budget": ANY}
    with diagnostics.watch(model, optimizer, path, **measured, examples=kept) as monitor:
        for x, y in batches:
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=(lambda x=x, y=y: loss(model(x), y)) if closure else None)
    return diagnostics.load(path)


def batches(x: Callable[[], Tensor], y: Callable[[Tensor], Tensor], updates: int = 9) -> Batches:
    torch.manual_seed(0)
    inputs = [x() for _ in range(updates)]
    return [(each, y(each)) for each in inputs]


def values(run: Run, step: int, role: str) -> list[np.ndarray]:
    rows = run.table("examples", first=step, last=step)
    rows = rows[rows["role"] == role].sort_values("example")
    return [np.reshape(v, [int(n) for n in size]) for v, size in zip(rows["values"], rows["size"], strict=True)]


class Series(nn.Module):
    """Reads (steps, rows, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][-1]).squeeze(1)


class Words(nn.Module):
    """Scores of the next word of each place, one row after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x)).reshape(-1, 20)


def by_hand(output: Tensor, y: Tensor) -> Tensor:
    return -output.log_softmax(1)[torch.arange(len(y)), y].mean()


def pictures() -> Tensor:
    return torch.rand(ROWS, 3, 10, 12)


CONV = nn.Conv2d(3, 3, 3, padding=1)
CASES = {
    "classes": (
        nn.Linear(5, 4), F.cross_entropy, lambda: torch.randn(ROWS, 5), lambda x: torch.randint(4, (ROWS,)),
    ),
    "classes by hand": (nn.Linear(5, 4), by_hand, lambda: torch.randn(ROWS, 5), lambda x: torch.randint(4, (ROWS,))),
    "maps of classes": (CONV, F.cross_entropy, pictures, lambda x: torch.randint(3, (ROWS, 10, 12))),
    "pictures": (CONV, F.mse_loss, pictures, lambda x: torch.rand(ROWS, 3, 10, 12)),
    "labels": (
        nn.Linear(5, 4), F.binary_cross_entropy_with_logits, lambda: torch.randn(ROWS, 5),
        lambda x: (x[:, :4] > 0).float(),
    ),
    "series": (Series(), F.mse_loss, lambda: torch.randn(30, ROWS, 3), lambda x: x.mean((0, 2))),
    "words": (
        Words(), lambda o, y: F.cross_entropy(o, y.flatten()), lambda: torch.randint(20, (ROWS, 7)),
        lambda x: x.roll(-1, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_they_are_the_batch_that_the_loss_was_of(tmp_path, case, closure):
    model, loss, x, y = CASES[case]
    data = batches(x, y)
    run = train(tmp_path, copy.deepcopy(model), loss, data, closure=closure)
    step = int(examples.kept(run)[0])
    given, target = data[step - 1]
    given = given.movedim(1, 0) if case == "series" else given
    target = target.movedim(1, -1) if case == "pictures" else target
    given = given.movedim(1, -1) if given.dim() == 4 else given
    for at, (kept_input, kept_target) in enumerate(
        zip(values(run, step, "input"), values(run, step, "target"), strict=True)
    ):
        assert np.allclose(kept_input, given[at].numpy())
        assert np.allclose(kept_target, np.atleast_1d(target[at].numpy()), atol=1e-5)
    assert len(values(run, step, "input")) == 3


def test_answers_are_in_the_unit_of_the_targets(tmp_path):
    model, loss, x, y = CASES["labels"]
    model, data = copy.deepcopy(model), batches(x, y)
    answered: list[Tensor] = []  # of each update; without a closure the model is called once

    def follow(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        answered.append(output.detach().sigmoid())

    model.register_forward_hook(follow)
    run = train(tmp_path, model, loss, data, closure=False)
    step = int(examples.kept(run)[-1])
    assert np.allclose(values(run, step, "answer"), answered[step - 1][:3].numpy(), atol=1e-6)


def test_the_class_of_a_place_that_is_ignored_is_none_and_one_that_is_shared_has_its_share(tmp_path):
    def mixed(output: Tensor, y: Tensor) -> Tensor:
        return 0.7 * F.cross_entropy(output, y) + 0.3 * F.cross_entropy(output, y.roll(1))

    y = torch.arange(ROWS) % 4
    _, _, x, _ = CASES["classes"]
    run = train(tmp_path / "mixed", nn.Linear(5, 4), mixed, batches(x, lambda x: y))
    rows = run.table("examples")
    assert rows.loc[rows["role"] == "target", "certainty"].to_numpy() == pytest.approx(0.7, abs=1e-4)
    y = torch.where(torch.arange(ROWS) % 3 == 0, -100, y)
    run = train(tmp_path / "ignored", nn.Linear(5, 4), F.cross_entropy, batches(x, lambda x: y))
    first = [float(each[0]) for each in values(run, int(examples.kept(run)[0]), "target")]
    assert first == [-1, 1, 2]


def test_a_loss_whose_targets_cannot_be_read_leaves_inputs_and_answers(tmp_path):
    x = batches(lambda: torch.randn(ROWS, 5), lambda x: torch.randn(ROWS, 2), updates=20)
    run = train(tmp_path, nn.Linear(5, 2), lambda o, y: F.l1_loss(o, y) ** 1.5, x)
    assert set(run.table("examples")["role"]) == {"input", "answer"}


def test_none_are_kept_unasked(tmp_path):
    model, loss, x, y = CASES["classes"]
    run = train(tmp_path, copy.deepcopy(model), loss, batches(x, y), kept=0)
    assert run.table("examples").empty and not list(tmp_path.glob("examples*"))


def test_a_run_that_kept_none_says_why(tmp_path):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).square().mean()

    run = train(tmp_path, Own(), lambda output, y: output, batches(lambda: torch.randn(ROWS, 5), lambda x: x))
    assert "no-examples" in set(run.table("events")["kind"])


def test_what_cannot_be_kept_stops_nothing_else(tmp_path, monkeypatch):
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no picture")

    monkeypatch.setattr(stats, "thumbnail", fail)
    model, loss, x, y = CASES["classes"]
    with pytest.warns(RuntimeWarning, match="examples could not be measured: RuntimeError: no picture"):
        run = train(tmp_path, copy.deepcopy(model), loss, batches(x, y, 60))
    assert run.table("examples").empty and run.table("scalars")["constant_loss"].notna().any()


def test_batches_are_kept_ever_more_rarely(tmp_path):
    model, loss, x, y = CASES["classes"]
    steps = examples.kept(train(tmp_path, copy.deepcopy(model), loss, batches(x, y, 100)))
    assert (steps[1:] >= 2 * steps[:-1]).all() and steps[-1] >= 40


def test_training_is_bitwise_unchanged(tmp_path):
    model, loss, x, y = CASES["pictures"]
    data, twin, watched = batches(x, y), copy.deepcopy(model), copy.deepcopy(model)
    train(tmp_path, watched, loss, data)
    optimizer = torch.optim.Adam(twin.parameters(), 1e-3)
    for given, target in data:
        optimizer.zero_grad()
        loss(twin(given), target).backward()
        optimizer.step()
    assert all(map(torch.equal, watched.parameters(), twin.parameters()))


@pytest.mark.parametrize("wrong", [-1, 2.5, "all"])
def test_how_many_must_be_a_whole_number(tmp_path, wrong):
    with pytest.raises((TypeError, ValueError), match="examples"):
        train(tmp_path, nn.Linear(2, 1), F.mse_loss, [], kept=wrong)


def test_thumbnails_average_numbers_and_pick_names():
    large = torch.arange(96.0)[:, None].expand(96, 96)
    assert torch.equal(stats.thumbnail(large)[:, 0], 2 * torch.arange(48) + 0.5)
    names = torch.arange(96)[:, None].expand(96, 96)
    assert torch.equal(stats.thumbnail(names)[:, 0], 2.0 * torch.arange(48))
    assert stats.thumbnail(torch.zeros(500, 3)).shape == (256, 3)


@pytest.mark.parametrize(
    ("shape", "small"),
    [
        ((), (1,)), ((5,), (5,)), ((784,), (28, 28)), ((500,), (256,)), ((1, 8, 8), (8, 8)), ((3, 8, 9), (8, 9, 3)),
        ((8, 9, 3), (8, 9, 3)), ((16, 8, 9), (8, 9)), ((1, 7, 8, 9), (8, 9)), ((0,), (0,)), ((3, 0, 4), (0, 4, 3)),
    ],
)  # fmt: skip
def test_thumbnails_of_all_shapes(shape, small):
    assert stats.thumbnail(torch.zeros(shape)).shape == small


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_pictures_are_black_at_the_lower_end_of_their_scale():
    drawn = pixels(rasters.image(np.array([[-1.0, 3.0], [1.0, np.nan]]), (-1.0, 3.0)))
    assert (drawn[0, 0], drawn[0, -1], drawn[-1, 0]) == (0, 255, 128)


def test_maps_of_classes_leave_out_what_is_ignored():
    assert pixels(rasters.classes(np.array([[0, np.inf]])))[0, -1, 3] == 0
    drawn = pixels(rasters.classes(np.array([[0, 1], [-1, 7]])))
    corners = drawn[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert len({tuple(each) for each in corners}) == 4 and list(corners[:, 3]) == [255, 255, 0, 255]


def test_series_and_bars_reach_from_their_lowest_to_their_highest():
    line = pixels(rasters.lines(np.array([[0.0], [1.0]]), (0.0, 1.0)))[..., 3]
    assert line[-10:, :10].any() and line[:10, -10:].any() and not line[:10, :10].any()
    bar = pixels(rasters.bars(np.array([1.0, -1.0]), (-1.0, 1.0)))[..., 3]
    assert bar[5, 50] and not bar[-6, 50] and bar[-6, 150] and not bar[5, 150]


@pytest.mark.parametrize("draw", [rasters.image, rasters.bars])
def test_numbers_that_are_not_finite_are_drawn_at_an_end(draw):
    """As those of a run that diverged: a page is not to fail."""
    rows = [[np.nan, np.inf, 1.0, -np.inf], [0.0, 1.0, 1.0, 0.0]]
    odd, plain = (pixels(draw(np.array(row if draw is rasters.bars else [row]), (0.0, 1.0))) for row in rows)
    assert np.array_equal(odd, plain)


def test_a_series_is_drawn_as_far_as_it_is_finite():
    values = np.array([[0.5], [0.5], [np.inf], [np.nan]])
    drawn = pixels(rasters.lines(values, (0.0, 1.0)))[..., 3]
    assert drawn[:, : drawn.shape[1] // 3].any() and not drawn[:, drawn.shape[1] // 2 :].any()


def of(kind: str, numbers: list[float], certainty: float = np.nan) -> Run:
    row = {"step": 1, "example": 0, "role": "target", "kind": kind, "size": [float(len(numbers))], "values": numbers}
    return Run.from_frames({"name": "r"}, {"examples": pd.DataFrame([row | {"certainty": certainty}])})


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (of("classes", [3.0], 1.0), "3"),
        (of("classes", [3.0], 0.625), "3\n62.5 %"),
        (of("classes", [-1.0, 12.0, 5.0]), "– 12 5"),
        (of("numbers", [0.123456]), "0.123"),
        (of("numbers", [1.0, -3e-8, 0.5]), "1 0 0.5"),
        (of("numbers", [np.nan]), "nan"),
    ],
)
def test_what_is_written_of_few_numbers(run, text):
    spec = examples.of_step(run, 1, "T").to_dict()
    assert text in [row["text"] for rows in spec["datasets"].values() for row in rows]


@pytest.mark.parametrize("size", [[3.0, 5.0], [], [np.nan], [-1.0, -2.0], [1.0, 1.0, 2.0], [0.5, 4.0]])
def test_what_is_kept_in_a_size_that_is_not_its_own_is_not_drawn(size):
    rows = of("numbers", [1.0, 2.0]).table("examples").assign(size=[size])
    spec = examples.of_step(Run.from_frames({"name": "r"}, {"examples": rows}), 1, "T").to_dict()
    assert "No example" in str(spec["datasets"])
