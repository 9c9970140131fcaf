"""A run directory is data from somebody else."""

import ast
import json
import os
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diagnostics.run import RunError, RunWriter, load, runs
from diagnostics.run.frames import CONTINUATION, PLACEHOLDER, next_frame, seal
from diagnostics.run.layout import Layout


def stream(layout, columns, session=1, first_step=1, options=None, schema=None):
    """A stream whose checksums are right, whatever is in it: its author knows how to compute them."""
    schema = schema or layout.schema(session, first_step)
    header = schema.serialize().to_pybytes()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema), custom_metadata={"checksum": PLACEHOLDER})
        end = sink.tell()
    return header + seal(sink.getvalue()[len(header) : end].to_pybytes(), zlib.crc32(header))


@pytest.fixture
def folder(tmp_path):
    writer = RunWriter(tmp_path / "run", {"name": "run"})
    writer.append("scalars", 1, {"loss": 1.0})
    writer.close("finished")
    return tmp_path / "run"


def reason(run):
    events = run.table("events")
    return " ".join(events.loc[events["kind"] == "damaged", "message"])


def test_the_store_has_no_pickle_and_no_eval():
    names = {
        node.id if isinstance(node, ast.Name) else node.name
        for file in Path("diagnostics/run").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Name | ast.alias)
    }
    assert not names & {"pickle", "eval", "exec", "marshal", "shelve", "read_pickle", "__import__"}


def test_links_lead_nowhere(folder, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"name": "secret"}))
    os.symlink(folder / "scalars-0000.arrows", folder / "scalars-0001.arrows")
    (folder / "run.json").unlink()
    os.symlink(secret, folder / "run.json")
    run = load(folder)
    assert run.meta["name"] == "run" and run.steps("scalars").tolist() == [1] and len(run.table("scalars")) == 1
    os.symlink(folder, tmp_path / "linked")
    assert [Path(run.path).name for run in runs(tmp_path)] == ["run"]


def test_a_pipe_or_a_directory_in_place_of_a_file_does_not_block(folder):
    os.mkfifo(folder / "layers-0000.arrows")
    (folder / "units-0000.arrows").mkdir()
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")
    run = load(folder)
    assert len(run.table("scalars")) == 1 and len(run.table("layers")) == 0 and "run.json" in reason(run)


def test_a_writer_does_not_follow_links(folder, tmp_path):
    os.symlink(tmp_path / "outside", folder / ".run.json.tmp")
    target = tmp_path / "target"
    target.write_text("precious")
    os.symlink(target, folder / f".run.json.{os.getpid()}")
    with pytest.raises(RunError):
        RunWriter(folder, {})
    assert target.read_text() == "precious"


def test_compressed_records_are_refused_before_they_are_unpacked(folder):
    layout = Layout("curvature", ("smallest",))
    bomb = stream(
        layout, [np.zeros(1 << 20, np.int64), np.zeros(1 << 20)], options=pa.ipc.IpcWriteOptions(compression="zstd")
    )
    assert len(bomb) < 1 << 16
    (folder / "curvature-0000.arrows").write_bytes(bomb)
    tracemalloc.start()
    run = load(folder)
    assert len(run.table("curvature")) == 0 and "compressed" in reason(run)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_nulls_are_refused(folder):
    layout = Layout("curvature", ("smallest",))
    (folder / "curvature-0000.arrows").write_bytes(stream(layout, [[1, None], [1.0, 2.0]]))
    (folder / "layers-0000.arrows").write_bytes(
        stream(Layout("layers", ("grad_norm",), ("a", "b")), [[1, 2], [[1.0, 2.0], None]])
    )
    run = load(folder)
    assert len(run.table("curvature")) == 0 and len(run.table("layers")) == 0
    assert run.matrix("layers", "grad_norm")[2].size == 0 and "nulls" in reason(run)


@pytest.mark.parametrize(
    "fields",
    [
        [("step", pa.float64())],
        [("loss", pa.float64())],
        [("step", pa.int64()), ("smallest", pa.dictionary(pa.int8(), pa.string()))],
        [("step", pa.int64()), ("smallest", pa.null())],
        [("step", pa.int64()), ("smallest", pa.float64()), ("smallest", pa.float64())],
        [("step", pa.int64()), ("smallest", pa.list_(pa.list_(pa.float64())))],
    ],
)
def test_other_types_than_the_vocabularys_are_refused(folder, fields):
    metadata = Layout("curvature", ("smallest",)).schema(1, 1).metadata
    (folder / "curvature-0000.arrows").write_bytes(pa.schema(fields, metadata=metadata).serialize().to_pybytes())
    run = load(folder)
    assert len(run.table("curvature")) == 0 and "curvature-0000" in reason(run)


@pytest.mark.parametrize(
    "description",
    [
        "[]",
        "{",
        '{"format": 1}',
        '{"format": "x", "table": "curvature", "session": 1, "first_step": 1}',
        '{"format": 1, "table": "../../etc/passwd", "session": 1, "first_step": 1}',
        '{"format": 1, "table": "curvature", "session": 1, "first_step": 1, "names": ["a"]}',
        '{"format": 1, "table": "curvature", "session": 1e999, "first_step": 1}',
        "[" * 100_000,
    ],
)
def test_a_description_that_makes_no_sense_is_refused(folder, description):
    schema = pa.schema([("step", pa.int64())], metadata={"diagnostics": description})
    (folder / "curvature-0000.arrows").write_bytes(schema.serialize().to_pybytes())
    run = load(folder)
    assert len(run.table("scalars")) == 1 and "curvature-0000" in reason(run)


def test_streams_that_would_multiply_into_a_huge_matrix_are_an_error(folder):
    """A hundred small streams of a thousand names each, none in common, at a hundred steps each."""
    steps = np.arange(100)
    for number in range(60):
        names = tuple(f"{number}-{name}" for name in range(1000))
        layout = Layout("layers", ("grad_norm",), names)
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(100 * 1000, np.float32)), 1000)
        (folder / f"layers-{number:04d}.arrows").write_bytes(stream(layout, [steps + 100 * number, values]))
    with pytest.raises(RunError, match="360000000 values, but 6000000 are stored"):
        load(folder).matrix("layers", "grad_norm")


@pytest.mark.parametrize("content", ["ff", "prefixes"])
def test_searching_for_the_next_record_ends_soon(content):
    data = b"\xff" * (1 << 23) if content == "ff" else (CONTINUATION + b"\x40\0\0\0") * (1 << 20)
    began = time.perf_counter()
    assert next_frame(data, 1, 0) is None
    assert time.perf_counter() - began < 3


def test_a_huge_hole_is_no_work(folder):
    """A sparse file of a terabyte: nothing is allocated by its size."""
    with (folder / "layers-0000.arrows").open("wb") as file:
        file.truncate(1 << 40)
    with (folder / "scalars-0000.arrows").open("r+b") as file:
        file.truncate(1 << 40)
    (folder / "run.json").unlink()
    with (folder / "run.json").open("wb") as file:
        file.truncate(1 << 40)
    began = time.perf_counter()
    run = load(folder)
    assert len(run.table("scalars")) == 1 and "zeros" in reason(run) and "larger than" in reason(run)
    assert time.perf_counter() - began < 5


def test_random_files_never_crash(folder):
    random, data = np.random.default_rng(0), (folder / "scalars-0000.arrows").read_bytes()
    for _ in range(150):
        rotten = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 30)):
            rotten[place] = random.integers(256)
        (folder / "scalars-0000.arrows").write_bytes(rotten)
        assert set(load(folder).table("scalars")["loss"]) <= {1.0}


def test_markup_in_names_and_messages_stays_text(tmp_path):
    """What the pages escape must arrive as it was written, not half cleaned."""
    script = "<script>alert(1)</script> **bold** $x$"
    writer = RunWriter(tmp_path / "run", {"name": script})
    writer.event(1, "budget", script, script)
    writer.close("finished")
    run = load(tmp_path / "run")
    assert run.meta["name"] == script and run.table("events")["message"].tolist() == [script]
