"""Any sequence of appends, flushes, kills, torn tails and resumes reads back as a prefix of what was appended."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diagnostics.run import RunWriter, load
from diagnostics.run import writer as writer_module


@pytest.fixture(scope="module", autouse=True)
def _only_explicit_flushes() -> Iterator[None]:
    before, writer_module.FLUSH_SECONDS = writer_module.FLUSH_SECONDS, 3600.0
    yield
    writer_module.FLUSH_SECONDS = before


class Recording(RuleBasedStateMachine):
    """The model: of every session its first step, the values it appended, and how many of them were flushed."""

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "run"
        self.sessions: list[tuple[int, list[float]]] = []
        self.flushed: list[int] = []
        self.count = 0
        self.reader = None
        self.open(None)

    def open(self, first_step):
        self.writer = RunWriter(self.path, {}, first_step=first_step)
        self.sessions.append((self.writer.resumed_from + 1, []))
        self.flushed.append(0)

    @precondition(lambda self: self.writer)
    @rule(count=st.integers(1, 30), names=st.sampled_from([("a",), ("a", "b")]))
    def append(self, count, names):
        first, values = self.sessions[-1]
        for _ in range(count):
            self.count += 1
            step = first + len(values)
            values.append(float(self.count))
            self.writer.append("scalars", step, {"loss": values[-1]})
            self.writer.append_many("layers", step, names, {"grad_norm": [values[-1]] * len(names)})

    @precondition(lambda self: self.writer)
    @rule()
    def flush(self):
        self.writer.flush()
        self.flushed[-1] = len(self.sessions[-1][1])

    @precondition(lambda self: self.writer)
    @rule(torn=st.binary(max_size=40))
    def kill(self, torn):
        """What was not flushed is gone; a write may have been cut short."""
        self.writer.disown()
        self.writer._stop_threads()
        self.writer = None
        if torn and (streams := sorted(self.path.glob("scalars-*"))):
            with streams[-1].open("ab") as file:
                file.write(torn)

    @precondition(lambda self: not self.writer)
    @rule(back=st.none() | st.integers(0, 40))
    def resume(self, back):
        last = load(self.path).last_step
        self.open(None if back is None else max(1, last + 1 - back))
        assert self.sessions[-1][0] == (last + 1 if back is None else max(1, last + 1 - back))

    @precondition(lambda self: self.writer)
    @rule()
    def close(self):
        self.writer.close("finished")
        self.flushed[-1] = len(self.sessions[-1][1])
        self.writer = None

    def expected(self):
        """Step -> value: what was flushed, later sessions over earlier ones from their first step on."""
        visible: dict[int, float] = {}
        for (first, values), flushed in zip(self.sessions, self.flushed, strict=True):
            if flushed:
                visible = {step: value for step, value in visible.items() if step < first}
                visible |= {first + index: value for index, value in enumerate(values[:flushed])}
        return visible

    @invariant()
    def reads_back(self):
        if not hasattr(self, "path"):
            return
        self.reader = self.reader.refresh() if self.reader else load(self.path)
        for run in (load(self.path), self.reader):
            scalars, (steps, _, values) = run.table("scalars"), run.matrix("layers", "grad_norm")
            assert dict(zip(scalars["step"], scalars["loss"], strict=True)) == self.expected()
            assert dict(zip(steps, values[:, 0], strict=True)) == self.expected() if len(steps) else not self.expected()

    def teardown(self):
        if getattr(self, "writer", None):
            self.writer.close("finished")
        if hasattr(self, "folder"):
            self.folder.cleanup()


Recording.TestCase.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRecording = Recording.TestCase
