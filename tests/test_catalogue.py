"""Every rule of the catalogue is complete: its name, its explanation, its thresholds. Adding a rule adds its tests."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import diagnostics
from diagnostics.rules import (
    _wiring_explains,
    catalogue,
    explain,
    title,
    wiring,
)
from diagnostics.run import Run
from diagnostics.views.text import reason

HEADINGS = [
    "What it is",
    "What we look at",
    "Why it happens",
    "What to try",
    "When this is wrong",
    "In the lecture",
]
KINDS = {
    *("lr-unstable", "non-finite", "cliff", "wiring", "symmetry", "zero-gradient", "dead-units", "saturated-units"),
    *("saddle-point", "plateau", "ravine", "lr-oscillation", "lr-too-small", "edge-of-stability", "local-minimum"),
}
RULES = catalogue()


def test_every_kind_of_the_design_has_a_rule():
    assert set(RULES) >= KINDS


@pytest.mark.parametrize("kind", RULES)
def test_the_file_is_named_as_the_kind(kind):
    assert RULES[kind].__name__.rpartition(".")[2] == kind.replace("-", "_")


@pytest.mark.parametrize("kind", RULES)
def test_the_explanation_has_the_fixed_headings_each_with_text(kind):
    sections = explain(kind)
    assert list(sections) == HEADINGS
    assert all(len(text) > 10 for text in sections.values())
    assert title(kind) and not title(kind).endswith(".")


def test_a_cause_of_which_the_title_is_not_true_has_its_own():
    assert "stays behind" in title("plateau", "below-linear")
    assert title("plateau", "nothing-learned") == title("plateau")


@pytest.mark.parametrize("kind", RULES)
def test_formulas_are_closed(kind):
    for heading, text in explain(kind).items():
        assert text.replace("$$", "$").count("$") % 2 == 0, f"{kind}: unpaired $ under {heading}"
        for formula in re.findall(r"\$+([^$]+)\$+", text):
            assert formula.count("{") == formula.count("}"), formula


def test_no_command_of_a_formula_has_become_a_character():
    """Backslash b, t or a, outside of a raw string."""
    for path in Path(wiring.__file__).parent.glob("*.py"):
        found = [code for code in ast.walk(ast.parse(path.read_text())) if isinstance(code, ast.Constant)]
        told = [code.value for code in found if isinstance(code.value, str)]
        assert all(text.replace("\n", "").isprintable() for text in told), path


@pytest.mark.parametrize("kind", RULES)
def test_thresholds_are_keyword_only_defaults_with_their_reasons(kind):
    check = RULES[kind].check
    run, *thresholds = inspect.signature(check).parameters.values()
    assert run.name == "run"
    source = inspect.getsource(check)
    for threshold in thresholds:
        assert threshold.kind is inspect.Parameter.KEYWORD_ONLY
        assert threshold.default is not inspect.Parameter.empty
        assert re.search(rf"^ +{threshold.name}: .*#|^ +# .*\n +{threshold.name}:", source, re.M), (
            f"{kind}: {threshold.name} states no reason, on its line or the one above"
        )


def test_ranks_order_the_catalogue_without_ties():
    ranks = [module.RANK for module in RULES.values()]
    assert ranks == sorted(set(ranks))


def test_an_empty_run_is_skipped_by_every_rule_or_clean_and_crashes_none():
    diagnosis = diagnostics.diagnose(Run.from_frames({"name": "empty"}, {}))
    assert not diagnosis.findings
    assert not diagnosis.crashed
    assert set(diagnosis.clean) | set(diagnosis.skipped) == set(RULES)


def test_each_cause_of_wiring_has_its_own_reason():
    """They have nothing in common: what is true of one would mislead about another."""
    files = [path.read_text() for path in Path(wiring.__file__).parent.glob("*.py")]
    sources = "".join(text for text in files if "_wiring_finding import found" in text)
    causes = set(re.findall(r'found\(\s*"([a-z-]+)"', sources)) | _wiring_explains.SHAPING
    assert {"detached", "scrambled-view", "gradients-accumulate"} <= causes
    text = explain("wiring")["Why it happens"]
    assert {cause: reason(text, cause).split("*")[1].lower() for cause in causes} == {
        cause: cause.replace("-", " ") for cause in causes
    }
    assert reason(text, None) == reason(text, "gradients-accumulate")
