"""The page of the plugin names all that the plugin has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import pytest_hotswap
from hotswap.report.laws import LAWS
from pytest_hotswap import HotswapContract, Subject, plugin, strategies
from pytest_hotswap.contract.contract import LawName
from pytest_hotswap.fixtures import AdapterFactory
from pytest_hotswap.machine.machine import run_hotswap_machine
from pytest_hotswap.marker import ARGUMENTS
from pytest_hotswap.subjects.protocol import missing
from tests.support.warm import run_pytest

PAGE = Path(__file__).parents[2] / "docs" / "plugin.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not in this copy")


class Parser:
    """Takes down what pytest_addoption declares."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def getgroup(self, *_: str) -> Parser:
        return self

    def addoption(self, name: str, **_: Any) -> None:
        self.names.append(name)

    def addini(self, name: str, *_: str, **__: Any) -> None:
        self.names.append(name)


def options() -> list[str]:
    parser = Parser()
    plugin.pytest_addoption(parser)  # type: ignore[arg-type]
    return parser.names


def signature(function: Any, name: str) -> str:
    """A call as the page has it: names and defaults, without types."""
    found = inspect.signature(function)
    plain = [
        one.replace(annotation=one.empty) for one in found.parameters.values() if one.name != "self"
    ]
    shown = str(found.replace(parameters=plain, return_annotation=found.empty))
    return f"{name}{shown}".replace("'", '"')


def signatures() -> list[str]:
    drawn = [
        name
        for name, value in vars(strategies).items()
        if inspect.isfunction(value)
        and value.__module__ == strategies.__name__
        and not name.startswith("_")
        and name != "register"
    ]
    return [
        *(signature(getattr(strategies, name), name) for name in drawn),
        signature(run_hotswap_machine, "run_hotswap_machine"),
        signature(AdapterFactory.__call__, "hotswap_adapter_factory"),
        f"hotswap({', '.join(f'{name}={kind()}' for name, (kind, _) in ARGUMENTS.items())})",
    ]


def members() -> set[str]:
    own = {*vars(Subject), *Subject.__annotations__} - {"made_with"}
    return {name for name in {*own, *missing(object())} if not name.startswith("_")}


def laws() -> list[str]:
    """The laws whose row does not have exactly their cases."""
    tests = [LawName.of(name) for name in dir(HotswapContract) if name.startswith("test_")]
    cases = {law: {t.case for t in tests if (t.law, t.role) == (law, "law")} for law in LAWS}
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]*)\|", text, re.M))
    return [
        law for law in LAWS if set(re.findall(r"`(\w+)`", rows.get(law, ""))) != cases[law] - {""}
    ]


def absent(names: Iterable[str], text: str) -> list[str]:
    """The names that stand in no span of code."""
    spans = "\n".join(re.findall(r"`([^`\n]+)`", text))
    return [
        name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", spans)
    ]


def test_the_page_names_everything(pytester: pytest.Pytester) -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = run_pytest(pytester, "--fixtures").stdout.str()
    fixtures = re.findall(r"^(hotswap_\w+)", shown, re.M)
    assert len(fixtures) > 4
    assert len(options()) > 10
    for names in (options(), fixtures, pytest_hotswap.__all__, members()):
        assert absent(names, text) == []
    assert [call for call in signatures() if call not in text] == []
    assert laws() == []


def test_the_examples_of_the_page_are_tests_that_pass(pytester: pytest.Pytester) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    eager = "import functools, torch\ntorch.compile = functools.partial(torch.compile, backend='eager')\n"
    pytester.makepyfile(eager + "\n".join(blocks))
    run_pytest(pytester, "-p", "no:cacheprovider").assert_outcomes(passed=7)


def test_a_name_that_is_not_there_is_seen() -> None:
    text = "`--hotswap-base PATH` --hotswap-bas `x`"
    assert absent(["--hotswap-base", "--hotswap-bas"], text) == ["--hotswap-bas"]
    assert {"adapters", "swap", "disabled"} <= members()
