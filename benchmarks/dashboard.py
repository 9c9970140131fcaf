"""`python -m benchmarks.dashboard`: what the pages cost in a browser, at 1,000, 100,000 and 1,000,000 updates.

Records real runs of those lengths (least squares on one weight with noise, so a million updates take seconds; the
layers are its gradient rescaled) and serves them with an empty cache of diagnoses. Measures in Chromium: first paint
and table of a cold start, the way to another page, the release of the brush until finer data is drawn, another
quantity on the heat map, and the bytes that each of these sends.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from diagnostics.rules import VERSION, diagnose
from diagnostics.run import RunWriter, load, summarize

ROOT = Path(__file__).parents[1]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
DRAWN = """[...document.querySelectorAll('[data-testid=stVegaLiteChart]')]
    .every(chart => chart.querySelector('svg.marks, canvas'))"""


def record(folder: Path, steps: int, layers: int) -> None:
    """Stochastic gradient descent on a noisy quadratic, every update recorded, the layers on every tenth."""
    writer = RunWriter(folder, {"name": folder.name, "optimizer": "SGD", "hyperparameters": [{"lr": 0.02}]})
    noise = np.random.default_rng(0).standard_normal(steps)
    weight, names = 1.0, [f"layer{i}.weight" for i in range(layers)]
    share = 0.97 ** np.arange(layers)
    for step in range(1, steps + 1):
        gradient = weight + 0.3 * noise[step - 1]
        loss = weight**2 / 2 + 0.01
        writer.append("scalars", step, {"time": 0.0, "loss": loss, "lr": 0.02, "grad_norm": abs(gradient)})
        if step % 10 == 0:
            norms = {
                "grad_norm": share * abs(gradient),
                "weight_norm": share,
                "update_norm": share * abs(gradient) / 50,
            }
            writer.append_many("layers", step, names, norms | {"silent_fraction": 0 * share, "grad_missing": 0 * share})
        if step % (steps // 50) == 0:
            writer.append(
                "curvature",
                step,
                {
                    "eigenvalues": [1.0],
                    "residuals": [0.0],
                    "preconditioned": 1.0,
                    "limit": 100.0,
                    "stability": 0.01,
                    "oscillation_limit": 0.5,
                },
            )
        weight -= 0.02 * gradient
    writer.flush()
    recorded = load(folder)
    writer.close("finished", summarize(recorded, diagnose(recorded), str(VERSION)))  # as `watch` does at its end


class Server:
    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "streamlit", "run", "dashboard.py", "--server.port", str(port)]
        environment = {**os.environ, "DIAGNOSTICS_RUNS": str(folder), "XDG_CACHE_HOME": str(folder / ".cache")}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1)
                return
            except OSError:
                time.sleep(0.05)


class Tab:
    """A page that counts what its websocket receives."""

    def __init__(self, page: Page, url: str):
        self.page, self.url, self.received = page, url, 0
        page.on("websocket", lambda socket: socket.on("framereceived", self._count))

    def _count(self, frame) -> None:
        self.received += len(frame)

    def settle(self) -> None:
        self.page.wait_for_selector(IDLE)
        self.page.wait_for_function(DRAWN)

    def timed(self, what: str, steps: int, action, until) -> None:
        self.received, start = 0, time.perf_counter()
        action()
        until()
        seconds = time.perf_counter() - start
        print(f"{steps:>9,} updates  {what:<42} {seconds:6.2f} s  {self.received / 1e3:8.0f} kB", flush=True)


def measure(browser, server: Server, steps: int) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    tab = Tab(context.new_page(), server.url)
    page, run = tab.page, f"steps-{steps}"

    def shown(selector: str):
        return lambda: page.wait_for_selector(selector)

    tab.timed("runs: address to first paint", steps, lambda: page.goto(server.url), shown("h1"))
    tab.timed("runs: to its table", steps, lambda: None, shown("[data-testid=stDataFrame] canvas"))
    for name in ("diagnosis", "diagnosis again", "layers", "layers again", "curvature", "whatif", "training"):
        address = name.partition(" ")[0]
        page.goto(f"{server.url}/?run={run}")
        tab.settle()
        link = page.locator(f"a[href^='{address}?']").first
        arrived = lambda n=address: (page.wait_for_url(f"**/{n}**"), tab.settle())  # noqa: E731
        tab.timed(f"{name}: click to drawn", steps, link.click, arrived)
    zoom(tab, steps)
    another_quantity(tab, run, steps)
    context.close()


def zoom(tab: Tab, steps: int) -> None:
    page = tab.page
    box = page.locator("[data-testid=stVegaLiteChart] svg.marks").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 300, box["y"] + 45)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 45, steps=5)
    tab.timed(
        "training: brush released to finer data",
        steps,
        page.mouse.up,
        lambda: (page.wait_for_url("**range=**"), tab.settle()),
    )


def another_quantity(tab: Tab, run: str, steps: int) -> None:
    """From the first heat map to one whose columns nobody has read yet, and back."""
    page = tab.page
    page.goto(f"{tab.url}/layers?run={run}")
    tab.settle()
    for what, choice, begins in (
        ("layers: another quantity", "Update ratio", "Size of the update"),
        ("layers: back to the first quantity", "Gradient norm", "Gradient norm"),
    ):
        drawn = page.locator(f"[aria-label^='{begins}'] svg.marks").first
        button = page.get_by_role("radio", name=choice)
        tab.timed(what, steps, button.click, lambda d=drawn: (d.wait_for(), tab.settle()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--layers", type=int, default=200)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    for steps in arguments.steps:
        record(folder / f"steps-{steps}", steps, arguments.layers)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    server = Server(folder)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            for steps in arguments.steps:
                measure(browser, server, steps)
            browser.close()
    finally:
        server.process.terminate()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
