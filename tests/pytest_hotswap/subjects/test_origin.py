"""Where the subject of a contract class comes from: itself, the rootdir's conftest.py, or an option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import hotswap
from pytest_hotswap import (
    DiffusersSubject,
    HotswapContract,
    PeftSubject,
    ReferenceSubject,
    SubjectProtocol,
    TransformersSubject,
)
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from pytest_hotswap.subjects.located import load_class
from pytest_hotswap.subjects.origin import origin
from pytest_hotswap.subjects.protocol import missing
from tests.support.models import write_adapter
from tests.support.warm import run_pytest

MICRO = """
import torch
from torch import nn
from pytest_hotswap import ReferenceSubject


class Micro(ReferenceSubject):
    adapters = "adapters/*"

    def base_model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()

    def inputs(self):
        return {"input": torch.ones(2, 4)}


class Lacking:
    unsupported = {}

    def adapter_paths(self):
        return []
"""
OVERRIDE = """
import pytest
from deployed import Micro

@pytest.fixture(scope="session")
def hotswap_subject({arguments}):
    return Micro()
"""
FILES = ("test_own.py", "test_needs.py")
SUITE = ("--pyargs", "pytest_hotswap.suite", "-p", "no:cacheprovider")


def write_project(folder: Path) -> Path:
    """A deployment of a micro model with two adapters."""
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    for name, rank in (("one", 2), ("two", 3)):
        write_adapter(
            folder / "adapters" / name, base, r=rank, target_modules=["0", "1"], seed=rank
        )
    (folder / "deployed.py").write_text(MICRO.lstrip())
    return folder


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_project(pytester.path)
    pytester.makeini("[pytest]\npythonpath = .\n")
    return pytester


NEEDS = (
    OVERRIDE.format(arguments="tmp_path_factory")
    + """
from pytest_hotswap import HotswapContract

class TestNeeds(HotswapContract):
    pass
"""
)
OWN = """
from deployed import Lacking, Micro
from pytest_hotswap import HotswapContract

class TestOwn(HotswapContract):
    subject = Micro

class TestLacking(HotswapContract):
    subject = Lacking
"""


def test_each_contract_class_names_its_subject_and_where_it_comes_from(
    project: pytest.Pytester,
) -> None:
    project.makeconftest(OVERRIDE.format(arguments="pytestconfig"))
    project.mkdir("unit").joinpath("conftest.py").write_text(OVERRIDE.format(arguments=""))
    project.makepyfile(test_own=OWN, test_needs=NEEDS)
    arguments = ("--continue-on-collection-errors", "--hotswap-report=out.jsonl", "-v", "-k")
    laws = "(Hotswap and test_swap_in_place) or test_preparation_covers"
    words = f"({laws}) and not any_first and not companions and not first"
    result = run_pytest(project, *SUITE, "unit", *FILES, *arguments, words)
    result.stdout.fnmatch_lines_random(
        [
            "hotswap: *test_hotswap_contract.py::TestHotswap tests Micro, from conftest.py:4",
            "hotswap: test_own.py::TestOwn tests Micro, from deployed.py:6",
            "hotswap: test_own.py::TestLacking tests Lacking, from deployed.py:17",
            "hotswap: the fixture hotswap_subject of unit/conftest.py reaches no contract class; "
            f"define it in {project.path}/conftest.py",
            "*::test_swap_in_place[[]one[]] PASSED*",
            "*::test_swap_in_place[[]two[]] PASSED*",
            "*TestOwn::test_preparation_covers PASSED*",
            "*TestLacking::test_preparation_covers ERROR*",
            "Lacking has no adapter_name, add, backend, base_model, * derive it from pytest_hotswap.Su*",
            "the fixture hotswap_subject of test_needs.py:4 takes tmp_path_factory, but the adapters'*",
        ]
    )
    result.assert_outcomes(passed=4, errors=2, deselected=result.parseoutcomes()["deselected"])
    lines = [json.loads(line) for line in (project.path / "out.jsonl").read_text().splitlines()]
    named = {line["nodeid"].split("::")[1]: line for line in lines if "subject" in line}
    assert {name: (line["subject"], line["origin"]) for name, line in named.items()} == {
        "TestHotswap": ("Micro", "conftest.py:4"),
        "TestOwn": ("Micro", "deployed.py:6"),
    }


def test_an_option_and_an_ini_key_are_named(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert origin(HotswapContract, request.node) == "nowhere"
    with monkeypatch.context() as patch:
        patch.setattr(request.config, "getini", {"hotswap_subject": "", "hotswap_base": "b"}.get)
        from_ini = origin(HotswapContract, request.node)
        patch.setattr(request.config.option, "hotswap_subject", "mine:Mine")
        from_option = origin(HotswapContract, request.node)
    assert from_ini == f"hotswap_base = b in {request.config.inipath}"
    assert from_option == "--hotswap-subject mine:Mine"


def test_the_subject_in_ten_lines_of_the_documentation_runs(tmp_path: Path) -> None:
    # without pytester, which would unload the parts of torch that the first compile imports
    project, page = write_project(tmp_path), Path(__file__).parents[3] / "docs" / "contract.md"
    if not page.exists():
        pytest.skip("the documentation is not here")
    code = page.read_text(encoding="utf-8").split("```python\n")[1].partition("```")[0]
    names: dict[str, Any] = {
        "my_prepare": lambda model, rank: hotswap.prepare(model, target_rank=rank)
    }
    names["my_swap"] = hotswap.swap
    path = project / "production.py"
    path.write_text(code)
    exec(compile(code, str(path), "exec"), names)  # noqa: S102 (our own documentation)
    Micro = load_class("deployed.py:Micro", project)

    class Mine(names["Production"]):  # type: ignore[misc]
        base_model, inputs = Micro.base_model, Micro.inputs

    subject = Mine(adapters=[str(project / "adapters" / "*")])
    deployment = Deployment(subject, project / "derived")
    for law in ("swap-equals-load", "swap-has-effect"):
        assert list(violations(deployment, law)) == []
    assert list(violations(deployment, "swap-equals-load", controls=True)) == []
    deployment.close()


@pytest.mark.parametrize(
    "cls", [DiffusersSubject, PeftSubject, ReferenceSubject, TransformersSubject]
)
def test_the_ready_made_subjects_follow_the_protocol(cls: type) -> None:
    assert isinstance(cls(), SubjectProtocol)
    assert missing(cls()) == []


def test_what_is_missing_is_what_keeps_a_class_from_following_it() -> None:
    class NoSwap(PeftSubject):
        swap = property()  # type: ignore[assignment]

    assert not isinstance(NoSwap(), SubjectProtocol)
    assert missing(NoSwap()) == ["swap"]
