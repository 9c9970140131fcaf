"""The protocol of a real object store: S3, served on this machine. Written, read back, listed, continued."""

import pytest
import torch
from torch import nn

import diagnostics


@pytest.fixture
def bucket(monkeypatch):
    """`s3://` of fsspec goes to a server in this process; nothing leaves the machine."""
    server = pytest.importorskip("moto.server", exc_type=ImportError).ThreadedMotoServer("127.0.0.1", 0)
    s3fs = pytest.importorskip("s3fs", exc_type=ImportError)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("runs")
    yield "s3://runs"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def train(url, steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with diagnostics.watch(model, optimizer, url, every=2) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            x = torch.randn(16, 4)
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda x=x: model(x).square().mean())
            losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestWarning")
def test_a_training_watched_into_s3(bucket):
    losses = train(f"{bucket}/folder/one", 6)
    run = diagnostics.load(f"{bucket}/folder/one")
    assert run.table("scalars")["loss"].tolist() == losses
    assert run.meta["status"] == "finished" and run.summary and len(run.table("curvature")) > 0
    more = train(f"{bucket}/folder/one", 3)  # continued
    train(f"{bucket}/folder/two", 2)
    listed = diagnostics.runs(f"{bucket}/folder")
    assert [run.path for run in listed] == [f"{bucket}/folder/two", f"{bucket}/folder/one"]
    again = diagnostics.load(f"{bucket}/folder/one")
    assert again.table("scalars")["loss"].tolist() == losses + more
    assert again.table("scalars")["step"].tolist() == list(range(1, 10))
    assert not diagnostics.diagnose(again).crashed
    with pytest.raises(diagnostics.RunError, match=r"s3://.*Next: "):
        diagnostics.load(f"{bucket}/folder/none")
