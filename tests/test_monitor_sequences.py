"""What runs along the batch, by the sizes alone: cases that look like it and are sound."""

import warnings

import pytest
import torch
from torch import Size, nn

import diagnostics
from diagnostics.monitor.sequences import along_batch, ends


@pytest.mark.parametrize(
    ("given", "answer", "steps", "sequences", "found"),
    [
        ((32, 8, 8), (32, 10), 32, 8, True),  # rows of pictures without batch_first
        ((32, 20), (32, 4), 32, 20, True),  # tokens
        ((32, 1, 28, 28), (32, 10), 32, 49, True),  # patches of pictures
        ((20, 32, 8), (20, 32, 10), 20, 32, False),  # time first, an answer a step
        ((20, 32, 8), (20, 320), 20, 32, False),  # the same, flattened
        ((20, 1, 8), (20, 10), 20, 1, False),  # one long sequence
        ((1, 5, 36), (1, 1), 1, 36, False),  # one step
        ((32, 8, 8), (32, 10), 8, 32, False),  # along the rows
        ((32, 7, 256), (32, 7, 24), 32, 224, False),  # 32 patches of each channel of 32 examples
        ((32, 32, 8), (32, 10), 32, 32, False),  # equal sizes cannot tell
        ((32, 1, 8, 48), (48, 32, 11), 32, 48, True),  # columns of pictures, and an answer for CTC
        ((32, 1, 8, 48), (48, 32, 11), 48, 32, False),
        ((32, 1, 8, 48), (48, 32, 11), 32, 96, False),  # three rows of each example
        ((20, 32, 8), (32, 20, 10), 20, 32, False),  # time first, and the answer examples first
    ],
)
def test_which_sizes_tell(given, answer, steps, sequences, found):
    ends_of_a_call = [(Size(given), Size(answer))]
    assert bool(along_batch(ends_of_a_call, [("core", steps, sequences, False)])) == found
    assert along_batch(2 * ends_of_a_call, [("core", steps, sequences, False)]) == []  # of which call?


@pytest.mark.parametrize(("batch_first", "remedy"), [(True, "leave batch_first=True out"), (False, "make recurrent")])
def test_a_recurrence_between_convolutions_and_ctc(batch_first, remedy, tmp_path):
    """Given the steps first, with `batch_first=True`; and given the examples first, without."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.columns, self.last = nn.Conv2d(1, 8, (6, 3), padding=(0, 1)), nn.Linear(16, 5)
            self.recurrent = nn.LSTM(8, 16, batch_first=batch_first)

        def forward(self, x):
            columns = self.columns(x)[:, :, 0].permute(2, 0, 1)
            states = self.recurrent(columns if batch_first else columns.transpose(0, 1))[0]
            return self.last(states if batch_first else states.transpose(0, 1)).log_softmax(-1)

    torch.manual_seed(0)
    model, lengths = Reader(), torch.full((8,), 3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with diagnostics.watch(model, optimizer, tmp_path, curvature_every=0) as monitor:
        for _ in range(5):
            x, texts = torch.randn(8, 1, 6, 20), torch.randint(1, 5, (8, 3))

            def loss_of(x=x, texts=texts):
                return nn.functional.ctc_loss(model(x), texts, torch.full((8,), 20), lengths)

            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=loss_of)
    (found,) = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms if each.cause == "along-batch"]
    assert found.remedies[0].startswith(remedy)


def test_calls_whose_ends_are_no_tensors_tell_nothing():
    x = torch.zeros(4, 2)
    assert ends((x,), x) == [(x.shape, x.shape)]
    assert ends((x,), (x, x)) == ends((), x) == ends(({"x": x},), x) == []


@pytest.mark.parametrize("closure", [True, False])
def test_a_model_of_nested_tensors_is_observed(closure, tmp_path):
    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = nn.Linear(4, 8)

        def forward(self, x):
            return torch.relu(self.core(x.to_padded_tensor(0.0))).mean((1, 2))

    torch.manual_seed(0)
    model = Ragged()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        x = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)])
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        with diagnostics.watch(model, optimizer, tmp_path, budget=100.0) as monitor:
            for _ in range(4):
                optimizer.zero_grad()
                loss = model(x).mean()
                loss.backward()
                optimizer.step()
                monitor.step(loss, closure=(lambda: model(x).mean()) if closure else None)
    run = diagnostics.load(tmp_path)
    assert "measurement-failed" not in set(run.table("events")["kind"]) and len(run.table("units"))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.every_case
def test_a_decoder_is_observed_behind_an_encoder_of_another_optimizer(kind, tmp_path):
    """Whose recurrent net takes part in the closure, and is no layer of the watched model."""
    encoder, decoder = kind(3, 8, batch_first=True), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(decoder.parameters(), 0.1)
    x = torch.randn(16, 5, 3)

    def loss_of():
        return decoder(encoder(x)[0][:, -1]).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with diagnostics.watch(decoder, optimizer, tmp_path / "run") as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                loss_of().backward()
                optimizer.step()
                monitor.step(loss_of(), closure=loss_of)
    units = diagnostics.load(tmp_path / "run").table("units")
    assert set(units["activation"]) == {"relu"}
