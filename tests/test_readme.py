"""The README says what is so: its loop runs, its tables are those of the rules and of the sample runs.

`python tests/test_readme.py` writes the two tables anew.
"""

import json
import re
import runpy
from pathlib import Path

import pytest

import diagnostics
from diagnostics.rules import catalogue, explain, title

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[^.]\.)\s", " ".join(text.split()), maxsplit=1)[0]


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows))


def kinds() -> str:
    rows = [
        (f"`{kind}`", title(kind), first_sentence(explain(kind)["In the lecture"]).rstrip(".")) for kind in catalogue()
    ]
    return table(("kind", "what it means", "in the lecture"), rows)


def samples() -> str:
    """Each fault with its cures, then the runs that are neither."""
    wanted = {p.parent.name: json.loads(p.read_text()) for p in sorted((ROOT / "sample_runs").glob("*/expected.json"))}
    cures = {each["cure"] for each in wanted.values()}
    rows = []
    for name, run in sorted(wanted.items(), key=lambda item: not item[1]["alarms"]):
        if name not in cures:
            alarms = [f"`{a['kind']}`" + (f" ({a['cause']})" if a["cause"] else "") for a in run["alarms"]]
            cured = ", ".join(f"`{cure}`" for cure in chain(name, wanted))
            rows.append((f"`{name}`", run["shows"], ", ".join(alarms) or "none", cured))
    return table(("run", "what it shows", "alarms", "cured in"), rows)


def chain(name: str, wanted: dict) -> list[str]:
    cure = wanted[name]["cure"]
    return [cure, *chain(cure, wanted)] if cure else []


TABLES = {"kinds": kinds, "samples": samples}


def with_tables(text: str) -> str:
    for name, make in TABLES.items():
        block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->\n(.*\n)?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.S)
    return text


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_up_to_date(name):
    assert f"<!-- {name} -->\n{TABLES[name]()}\n<!-- /{name} -->" in README.read_text(), "python tests/test_readme.py"


def loop() -> str:
    return re.search(r"```python\n(.*?)```", README.read_text(), flags=re.S)[1]


def test_the_example_is_the_readme_loop():
    assert (ROOT / "examples" / "digits.py").read_text().endswith(loop())


def test_the_loop_runs_and_its_run_is_diagnosed(tmp_path, monkeypatch, capsys):
    """Copied into an empty file, as a new user does."""
    monkeypatch.chdir(tmp_path)
    Path("loop.py").write_text(loop())
    runpy.run_path("loop.py")
    run = diagnostics.load("runs/digits-mlp")
    assert run.meta["status"] == "finished"
    assert len(run.table("scalars")) == 113
    assert len(run.table("curvature")) > 0
    assert not diagnostics.diagnose(run).alarms, capsys.readouterr().out


def test_the_tests_of_the_loops_exist():
    rows = [line for line in (ROOT / "docs" / "loops.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    for row in rows:
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"python -m diagnostics (\w+)", README.read_text()))
    help_text = (ROOT / "diagnostics" / "__main__.py").read_text()
    assert all(f'"{command}"' in help_text for command in commands)
    targets = set(re.findall(r"make ([a-z-]+)", README.read_text()))
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:|\bbench-%:", makefile, flags=re.M) for target in targets)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
