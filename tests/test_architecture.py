"""Who may import whom (design, section 5), seen in fresh interpreters, and the two lists of requirements."""

import ast
import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import diagnostics

ROOT = Path(__file__).parents[1]

# What importing a module may bring in. The first prefix that fits decides.
ALLOWED = {
    "diagnostics.metrics": set(),
    "diagnostics.run": {"numpy", "pandas", "pyarrow"},
    "diagnostics.rules": {"numpy", "pandas", "pyarrow"},
    "diagnostics.charts": {"numpy", "pandas", "pyarrow", "altair"},
    "diagnostics.views": {"numpy", "pandas", "pyarrow", "altair", "streamlit"},
    "diagnostics.stats": {"numpy", "torch"},
    "diagnostics.curvature": {"numpy", "torch"},
    "diagnostics.monitor": {"numpy", "pandas", "pyarrow", "torch"},
    "diagnostics.integrations": {"numpy", "pandas", "pyarrow", "torch"},
    "diagnostics.__main__": {"numpy", "pandas", "pyarrow"},
    "diagnostics": set(),
}
WATCHED = {"torch", "streamlit", "altair", "pandas", "pyarrow", "lightning", "transformers", "tensorboard", "wandb"}

# Which parts of the package each part may name in an import: metrics <- run <- rules <- charts <- views, and
# stats, curvature <- monitor -> run. `watch` alone hands `diagnose` to the monitor, as a plain callable.
PARTS = {
    "metrics": set(),
    "run": {"metrics"},
    "rules": {"run", "metrics"},
    "charts": {"rules", "run", "metrics"},
    "views": {"charts", "rules", "run", "metrics"},
    "stats": {"metrics"},
    "curvature": {"metrics"},
    "monitor": {"stats", "curvature", "run", "metrics", "rules"},
    "integrations": {"monitor", "stats", "curvature", "run", "metrics"},
}


def modules() -> list[str]:
    """Every module of the package, `__main__` included."""
    return ["diagnostics", *sorted(m.name for m in pkgutil.walk_packages(diagnostics.__path__, "diagnostics."))]


def part_of(module: str) -> str:
    """The longest prefix of a module's name that has an entry of its own."""
    return max((part for part in ALLOWED if f"{module}.".startswith(f"{part}.")), key=len)


def loaded_after_import(names: list[str]) -> set[str]:
    """Top-level third-party packages in `sys.modules` after importing `names` in a fresh interpreter."""
    code = f"import json, sys\nfor name in {names!r}: __import__(name)\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, f"importing {names} failed:\n{out.stderr}"
    return {name.partition(".")[0] for name in json.loads(out.stdout)} & WATCHED


@pytest.mark.parametrize("part", ALLOWED)
def test_importing_a_part_brings_in_only_what_it_may_use(part):
    """One fresh interpreter a part imports all of its modules: a forbidden package in any of them shows."""
    names = [name for name in modules() if part_of(name) == part]
    if not names:
        pytest.fail(f"no module belongs to {part}: remove it from ALLOWED")
    extra = loaded_after_import(names) - ALLOWED[part]
    assert not extra, f"{names} import {sorted(extra)}"


def imported_parts(path: Path) -> set[str]:
    """Parts of the package that a file names in an import statement, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("diagnostics.")}
    return found


@pytest.mark.parametrize("part", PARTS)
def test_parts_depend_on_each_other_in_one_direction(part):
    home = ROOT / "diagnostics" / part
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    for path in files:
        foreign = imported_parts(path) - PARTS[part] - {part, "__version__"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_the_rules_reach_the_monitor_at_one_place_only():
    files = sorted((ROOT / "diagnostics" / "monitor").rglob("*.py"))
    assert len([path for path in files if "rules" in imported_parts(path)]) <= 1


def test_streamlit_only_in_pages():
    """Also inside functions, where a fresh import would not show it."""
    allowed = {ROOT / "dashboard.py", *(ROOT / "diagnostics" / "views").rglob("*.py")}
    for path in {*(ROOT / "diagnostics").rglob("*.py")} - allowed:
        assert "import streamlit" not in path.read_text(), path


def test_requirements_are_those_of_the_package():
    """`requirements.txt` is what pyproject.toml says for the package, its dashboard and its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"]}
    for extra in ("dashboard", "test"):
        wanted |= set(project["optional-dependencies"][extra])
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert {line for line in lines if line} == wanted
