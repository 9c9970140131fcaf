"""What only a browser sees: pages by click and by address, pictures, console, accessibility, a run that trains.

A broken chart raises nothing in Python: it is an error in the browser and an empty space. Screenshots of every page,
light and dark, wide and narrow, are left in `test-output/screens` to be looked at.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from diagnostics.rules import diagnose
from diagnostics.run import RunWriter, load
from diagnostics.views import data, pages
from diagnostics.views.text import first_clause

ROOT = Path(__file__).parents[1]
SCREENS = ROOT / "test-output" / "screens"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
FAULTY = "sample/lr-unstable-digits"
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
DRAWN = (
    "[...document.querySelectorAll('[data-testid=stVegaLiteChart]')].every(e => e.querySelector('svg.marks, canvas'))"
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Dashboard:
    """A server of its own over a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder.parent / "server.log"
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "streamlit", "run", "dashboard.py", "--server.port", port]
        environment = {**os.environ, "DIAGNOSTICS_RUNS": str(folder), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.wait()

    def wait(self, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1) as answer:
                    if answer.read() == b"ok":
                        return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"the server did not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("served") / "runs"
    folder.mkdir()
    server = Dashboard(folder)
    yield server
    server.stop()
    log = server.log.read_text()
    assert "Traceback" not in log and "deprecat" not in log.lower(), log


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """One tab that remembers everything that went wrong in it."""

    def __init__(self, browser, dashboard: Dashboard, scheme: str = "light"):
        self.home, self.wrong = dashboard.url, []
        self.context = browser.new_context(viewport=WIDE, color_scheme=scheme, reduced_motion="reduce")
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"page error: {error}"))
        self.page.on("request", self._request)
        self.page.on("response", self._response)

    def _console(self, message) -> None:
        if message.type == "error" and "404" not in message.text:  # the 404s are judged as responses
            self.wrong.append(f"console: {message.text}")

    def _request(self, request) -> None:
        if not request.url.startswith((self.home, self.home.replace("http", "ws"), "data:", "blob:")):
            self.wrong.append(f"request to another host: {request.url}")

    def _response(self, response) -> None:
        probe = re.search(r"/\w+/_stcore/(health|host-config)$", response.url)  # the front end looks for its base path
        if response.status >= 400 and not probe:
            self.wrong.append(f"{response.status}: {response.url}")

    def open(self, path: str) -> None:
        self.page.goto(self.home + path)
        self.settle()

    def settle(self) -> None:
        """Until the script rests and every chart is drawn."""
        self.page.wait_for_selector(IDLE, timeout=30_000)
        self.page.wait_for_timeout(300)
        self.page.wait_for_selector(IDLE, timeout=30_000)
        self.page.wait_for_function(DRAWN, timeout=20_000)

    def fine(self) -> None:
        assert not self.page.locator("[data-testid=stException]").count(), self.page.inner_text(
            "[data-testid=stException]"
        )
        assert not self.wrong, "\n".join(self.wrong)


@pytest.fixture
def visitor(chromium, dashboard) -> Iterator[Visitor]:
    tab = Visitor(chromium, dashboard)
    yield tab
    tab.context.close()


def address(name: str) -> str:
    return "/" if name == "runs" else f"/{name}?run={FAULTY}"


QUICK = {("runs", "light"), ("diagnosis", "dark")}
VIEWS = [  # in CI each page in one scheme, by turns
    pytest.param(
        *(name, scheme),
        marks=()
        if (name, scheme) in QUICK
        else pytest.mark.exhaustive
        if (at + dark) % 2 == 0
        else pytest.mark.by_hand,
    )
    for dark, scheme in enumerate(("light", "dark"))
    for at, name in enumerate(pages.PAGES)
]


@pytest.mark.parametrize(("name", "scheme"), VIEWS)
def test_every_page_by_address(name, scheme, chromium, dashboard):
    """Drawn without an error, nothing wider than the screen, no serious accessibility finding; kept as pictures."""
    tab = Visitor(chromium, dashboard, scheme)
    tab.open(address(name))
    for size, label in ((WIDE, "wide"), (NARROW, "narrow")):
        tab.page.set_viewport_size(size)
        tab.page.wait_for_timeout(400)
        assert (
            tab.page.evaluate("(m => m.scrollWidth - m.clientWidth)(document.querySelector('[data-testid=stMain]'))")
            <= 2
        ), f"wider than {size['width']} pixels"
        picture(tab, f"{name}-{scheme}-{label}", size)
    tab.page.set_viewport_size(WIDE)
    assert_accessible(tab)
    tab.fine()
    tab.context.close()


def picture(tab: Visitor, name: str, size: dict) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    height = tab.page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
    tab.page.set_viewport_size({**size, "height": min(height + 80, 6000)})
    tab.page.wait_for_timeout(200)
    tab.page.screenshot(path=SCREENS / f"{name}.png")
    tab.page.set_viewport_size(size)


def assert_accessible(tab: Visitor) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab.page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not (violation["id"] == "svg-img-alt" and inside_chart(tab, node["target"][0]))
    ]
    assert not serious, "\n".join(serious)


def inside_chart(tab: Visitor, selector: str) -> bool:
    """Vega's own containers of marks have no name and cannot be given one; the chart as a whole has."""
    return tab.page.eval_on_selector(selector, "e => Boolean(e.closest('[data-testid=stVegaLiteChart]'))")


def test_a_click_opens_a_run_and_its_finding_can_be_read(visitor):
    visitor.open("/?q=lr-unstable-digits")
    grid = visitor.page.locator("[data-testid=stDataFrame]").bounding_box()
    visitor.page.mouse.click(grid["x"] + 110, grid["y"] + 36 + 20)  # the name in the first row
    visitor.page.wait_for_url("**/diagnosis?run=**")
    visitor.settle()
    worst = diagnose(load(data.SAMPLES / "lr-unstable-digits")).alarms[0]
    assert first_clause(worst.summary) in visitor.page.locator("h1").inner_text()
    assert worst.remedies[0] in visitor.page.locator(".st-key-finding-0").inner_text()
    assert not visitor.page.locator(".katex-error").count()
    visitor.fine()


@pytest.mark.exhaustive
def test_every_page_by_click_and_back(visitor):
    visitor.open(address("diagnosis"))
    for name in ("training", "layers", "curvature", "whatif"):
        visitor.page.get_by_role("link", name=pages.PAGES[name][0], exact=True).click()
        visitor.page.wait_for_url(f"**/{name}**")
        visitor.settle()
        assert "lr-unstable-digits" in visitor.page.url  # the run stays chosen
    visitor.page.go_back()
    visitor.page.wait_for_url("**/curvature**")
    visitor.settle()
    visitor.fine()


@pytest.mark.exhaustive
def test_a_slider_moved_by_keyboard_changes_the_number(visitor):
    visitor.open("/whatif?run=sample/lr-fitting")
    before = visitor.page.locator("[data-testid=stMetricValue]").first.inner_text()
    slider = visitor.page.get_by_role("slider", name="Learning rate α")
    slider.focus()
    for _ in range(12):
        slider.press("ArrowRight")
    visitor.page.wait_for_function(
        f"document.querySelector('[data-testid=stMetricValue]').innerText.trim() !== '{before.strip()}'"
    )
    visitor.settle()
    assert float(visitor.page.locator("[data-testid=stMetricValue]").first.inner_text()) > float(before)
    assert "eta=" in visitor.page.url
    visitor.fine()


@pytest.mark.exhaustive
def test_the_brush_zooms_without_a_new_chart_and_the_address_holds_it(visitor):
    visitor.open("/training?run=sample/edge-of-stability")
    chart = visitor.page.locator("[data-testid=stVegaLiteChart] svg.marks")
    chart.evaluate("element => element.marked = true")
    box = chart.bounding_box()
    visitor.page.mouse.move(box["x"] + 300, box["y"] + 45)
    visitor.page.mouse.down()
    visitor.page.mouse.move(box["x"] + 500, box["y"] + 45, steps=6)
    visitor.page.mouse.up()
    visitor.page.wait_for_url("**range=**")
    visitor.settle()
    assert chart.evaluate("element => element.marked") is True
    link = visitor.page.url
    visitor.page.goto(link)
    visitor.settle()
    assert visitor.page.url == link
    visitor.fine()


@pytest.mark.exhaustive
def test_a_live_run_is_followed_without_a_new_page(visitor, dashboard):
    """Ten updates arrive while nobody touches anything; the chart stays the same element; the end stops it."""
    writer = RunWriter(dashboard.folder / "live", {"name": "live"})

    def update(step: int) -> None:
        writer.append("scalars", step, {"time": time.time(), "loss": 1 / step, "lr": 0.1, "grad_norm": 1 / step})
        writer.flush()

    for step in range(1, 6):
        update(step)
    time.sleep(2.1)  # the listing is at most two seconds old
    visitor.open("/training?run=live")
    facts = visitor.page.locator("[data-testid=stCaptionContainer]").first
    visitor.page.locator("svg.marks").first.evaluate("element => element.marked = true")
    for step in range(6, 16):
        update(step)
        time.sleep(0.3)
    visitor.page.wait_for_function("document.body.innerText.includes('15 updates')", timeout=10_000)
    assert visitor.page.locator("svg.marks").first.evaluate("element => element.marked") is True
    writer.close("finished")
    visitor.page.wait_for_function("document.body.innerText.includes('finished')", timeout=10_000)
    assert "15 updates" in facts.inner_text()
    visitor.fine()


def test_the_guards_see_a_broken_chart_and_a_request_elsewhere(visitor):
    visitor.open("/")
    visitor.page.evaluate("setTimeout(() => { throw new Error('broken chart') })")
    visitor.page.evaluate("fetch('http://127.0.0.1:9/elsewhere').catch(() => 0)")
    visitor.page.wait_for_timeout(300)
    assert any("broken chart" in wrong for wrong in visitor.wrong)
    assert any("another host" in wrong for wrong in visitor.wrong)
