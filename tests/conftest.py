"""Set-up shared by all tests: checked shapes, one thread a process, and no silent skip where skipping is a failure."""

import os
import sys
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two pytest workers share two cores

import pytest
from jaxtyping import config as shape_checks
from jaxtyping import install_import_hook

# Every shape in a signature of the numerical code is checked at each call while the tests run. Its files without shapes
# are left alone: checks of small functions were a third of what a watched training took.
SOURCES = Path(__file__).parents[1] / "diagnostics"
NUMERICAL = [*SOURCES.glob("stats/*.py"), *SOURCES.glob("curvature/*.py")]
SHAPED = [path for path in NUMERICAL if "from jaxtyping import" in path.read_text("utf-8")]
install_import_hook(
    [".".join(path.relative_to(SOURCES.parent).with_suffix("").parts) for path in SHAPED], "beartype.beartype"
)

VERY_MANY = 8  # cases of one test: with all of them CI would take more than its 25 minutes
DEAR, TENTH = ("test_rules", "test_faults"), 10  # each case trains a network
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Of a test with several cases every eighth is run by default: `make test` is for between two edits. In CI all are,
    of very many half; but of the dear ones, which take half of its time, every tenth of few cases too. The rest is by
    hand. Which case of few is run goes by turns, so that as many tests say what is told as what is not.
    """
    cases: dict[tuple, list[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("every_case") and not item.get_closest_marker("by_hand"):
            only_ci = item.get_closest_marker("exhaustive") is not None
            cases.setdefault((item.path, getattr(item, "originalname", item.name), only_ci), []).append(item)
    for (path, name, only_ci), several in cases.items():
        dear = path.name.startswith(DEAR)
        for at, item in enumerate(several):
            if dear and (at + zlib.crc32(name.encode())) % len(several) % TENTH:
                item.add_marker(pytest.mark.by_hand)
            elif not dear and not only_ci and at % 8:
                very_many = len(several) > VERY_MANY
                item.add_marker(pytest.mark.by_hand if very_many and at % 2 else pytest.mark.exhaustive)


@pytest.fixture(scope="session", autouse=True)
def _charts_of_any_size():
    """Outside Streamlit, altair refuses charts with more than 5,000 rows."""
    import altair

    altair.data_transformers.disable_max_rows()


@pytest.fixture(autouse=True)
def _shapes_are_checked_where_they_are_tested(request: pytest.FixtureRequest):
    """Tests of rules train hundreds of models only to have runs; a sixth of their time would go to checks."""
    shape_checks.update("jaxtyping_disable", request.path.name.startswith(("test_rules", "test_faults")))


@pytest.fixture(autouse=True)
def _nothing_stays_compiled():
    """Once something in a process is compiled, the monitor puts no hook on a forward any more."""
    yield
    if getattr(sys.modules.get("torch._dynamo.convert_frame"), "FRAME_COUNTER", 0):
        sys.modules["torch._dynamo"].reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """In CI a skipped test is a failure: there, whatever a test needs is installed. Only accelerators may be absent."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("device"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where everything a test needs must be installed: {reason}"
    return report
