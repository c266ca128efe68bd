"""Findings as text, JSON, GitHub annotations and SARIF; the same for adapter files and source code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from hotswap.findings import RULES, Finding, Related, printable

Level = Literal["error", "warning", "notice"]
Format = Literal["text", "json", "github", "sarif"]
FORMATS: tuple[Format, ...] = ("text", "json", "github", "sarif")
_STYLES = {"place": "1", "error": "1;31", "warning": "1;33", "help": "36"}
_HOME = "https://pypi.org/project/pytest-hotswap/"
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(
    findings: Sequence[Finding],
    form: Format,
    *,
    tool: str = "hotswap",
    version: str = "",
    documentation: Mapping[str, str] | None = None,
    color: bool = False,
) -> str:
    """Render findings; ``documentation`` maps a code to the description that SARIF carries."""
    if form == "sarif":
        return _sarif(findings, tool, version, documentation or {})
    if form == "json":
        told = [finding.as_dict() for finding in findings]
        return json.dumps(told, indent=2, ensure_ascii=False)
    if form == "github":
        return "\n".join(map(_annotation, findings))
    return "\n\n".join(_paragraph(finding, color) for finding in findings)


def _paragraph(finding: Finding, color: bool) -> str:
    def paint(text: str, style: str) -> str:
        return f"\033[{_STYLES[style]}m{text}\033[0m" if color else text

    mark = " (warning)" if finding.severity == "warning" else ""
    code = paint(finding.code, finding.severity)
    place = paint(printable(finding.place), "place")
    lines = [f"{place}: {code} {finding.name}{mark}", f"  {printable(finding.message)}"]
    if finding.line is not None and finding.snippet:
        gutter = " " * len(str(finding.line))
        caret = paint(_caret(finding), finding.severity)
        snippet = "\t".join(map(printable, finding.snippet.split("\t")))
        lines += [f"  {finding.line} | {snippet}", f"  {gutter} | {caret}"]
    lines += [printable(f"  {r.where}:{r.line}: {r.message}") for r in finding.related]
    return "\n".join([*lines, f"  {paint('help', 'help')}: {printable(finding.remedy)}"])


def _caret(finding: Finding) -> str:
    start = (finding.column or 1) - 1
    end = len(finding.snippet)
    if finding.end_line == finding.line and finding.end_column is not None:
        end = finding.end_column - 1
    indent = "".join("\t" if c == "\t" else " " for c in finding.snippet[:start])
    return indent + "^" * max(end - start, 1)


def _annotation(finding: Finding) -> str:
    path, _, inside = finding.where.partition("::")
    fields: dict[str, str] = {}
    if finding.line is not None and not inside:
        fields |= {"line": str(finding.line), "col": str(finding.column)}
        fields |= {"endLine": str(finding.end_line), "endColumn": str(finding.end_column)}
    text = f"{f'{inside}: ' if inside else ''}{finding.message}; {finding.remedy}"
    return annotation(finding.severity, path, f"{finding.code} {finding.name}", text, **fields)


def annotation(level: Level, file: str, title: str, text: str, **fields: str) -> str:
    """Write one workflow command of GitHub; it can neither end early nor begin another one."""
    named = {"file": file, "title": title, **fields}
    properties = ",".join(f"{k}={_escaped(v, ':,')}" for k, v in named.items() if v)
    return f"::{level} {properties}::{_escaped(text)}"


def _escaped(text: str, more: str = "") -> str:
    for character in f"%\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _sarif(
    findings: Sequence[Finding], tool: str, version: str, documentation: Mapping[str, str]
) -> str:
    codes = sorted({finding.code for finding in findings})
    named = {"name": tool, "version": version} if version else {"name": tool}
    run = {
        "tool": {
            "driver": {**named, "rules": [_rule(code, findings, documentation) for code in codes]}
        },
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, codes) for finding in findings],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule(
    code: str, findings: Sequence[Finding], documentation: Mapping[str, str]
) -> dict[str, Any]:
    level = next(f.severity for f in findings if f.code == code)
    described: dict[str, Any] = {
        "id": code,
        "name": RULES[code],
        "helpUri": f"{_HOME}#{code.lower()}",
        "defaultConfiguration": {"level": level},
    }
    if code in documentation:
        text = documentation[code]
        described["shortDescription"] = {"text": text.split("\n", 1)[0]}
        described["fullDescription"] = {"text": text}
        described["help"] = {"text": text, "markdown": _markdown(text)}
    return described


def _markdown(documentation: str) -> str:
    """Turn the documentation of a rule into Markdown: what is indented is code."""
    lines = []
    code = False
    for line in documentation.split("\n"):
        if line.strip() and line.startswith("    ") != code:
            lines.append("```" if code else "```python")
            code = not code
        lines.append(line.removeprefix("    ") if code else line)
    return "\n".join([*lines, "```"] if code else lines)


def _result(finding: Finding, codes: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": finding.severity,
        "message": {"text": f"{finding.message}; {finding.remedy}"},
        "locations": [_location(finding)],
    }
    if finding.related:
        result["relatedLocations"] = [
            {"id": number, **_location(r), "message": {"text": r.message}}
            for number, r in enumerate(finding.related)
        ]
    return result


def _location(place: Finding | Related) -> dict[str, Any]:
    path, _, inside = place.where.partition("::")
    here = os.getcwd()
    path = os.path.relpath(path, here) if path.startswith(here + os.sep) else path
    uri = quote(path.replace("\\", "/").encode("utf-8", "surrogateescape"), safe="/~")
    physical: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if inside:
        logical = [{"fullyQualifiedName": place.where}]
        return {"physicalLocation": physical, "logicalLocations": logical}
    if place.line is not None:
        physical["region"] = {"startLine": place.line, "startColumn": place.column}
        if isinstance(place, Finding):
            physical["region"] |= {"endLine": place.end_line, "endColumn": place.end_column}
    return {"physicalLocation": physical}
