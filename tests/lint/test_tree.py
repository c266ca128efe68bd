"""Names from files of the same tree are followed, and findings say where the other half stands."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from hotswap.lint.check import check_source
from hotswap.lint.settings import Settings
from tests.support.lint_trees import CASES


def write(folder: Path, files: dict[str, str]) -> set[tuple[str, int, str]]:
    """Write the files; return path, line and code of what they say is wrong."""
    wanted = set()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        for number, line in enumerate(path.read_text().splitlines(), 1):
            wanted |= {(name, number, code) for code in re.findall(r"# want (HSW\d+)", line)}
    return wanted


def found(folder: Path) -> set[tuple[str, int | None, str]]:
    findings = check_source(folder)
    return {(Path(f.where).relative_to(folder).as_posix(), f.line, f.code) for f in findings}


@pytest.mark.parametrize("name", CASES)
def test_a_tree_is_reported_where_it_says(tmp_path: Path, name: str) -> None:
    wanted = write(tmp_path, CASES[name])
    assert found(tmp_path) == wanted


def test_the_finding_says_where_the_other_half_stands(tmp_path: Path) -> None:
    write(tmp_path, CASES["a function that compiles"])
    (finding,) = check_source(tmp_path)
    related = [
        (Path(r.where).relative_to(tmp_path).as_posix(), r.line, r.message) for r in finding.related
    ]
    assert related == [("core/speed.py", 4, "compiled here")]


def test_noqa_in_the_file_of_the_finding_counts(tmp_path: Path) -> None:
    files = dict(CASES["the mistake in the other module"])
    files["late.py"] = files["late.py"].replace("# want HSW203", "# noqa: HSW203")
    write(tmp_path, files)
    assert found(tmp_path) == set()


def test_settings_of_the_file_of_the_finding_count(tmp_path: Path) -> None:
    write(tmp_path, CASES["the mistake in the other module"])
    for name, told in (("late.py", 0), ("app.py", 1)):
        settings = Settings(per_file_ignores={name: ["HSW203"]}, root=tmp_path)
        assert len(check_source(tmp_path, settings=settings)) == told


def test_a_comment_in_the_file_of_the_finding_is_used(tmp_path: Path) -> None:
    files = dict(CASES["the mistake in the other module"])
    files["late.py"] = files["late.py"].replace("# want HSW203", "# noqa: HSW203, HSW205")
    write(tmp_path, files)
    (unused,) = check_source(tmp_path, settings=Settings(extend_select=["unused-noqa"]))
    assert "suppresses HSW205" in unused.message


def test_only_files_that_are_linted_are_followed(tmp_path: Path) -> None:
    write(tmp_path, CASES["a function that compiles"])
    assert check_source(tmp_path / "app.py") == []
    assert len(check_source([tmp_path / "app.py", tmp_path / "core" / "speed.py"])) == 1


def test_a_module_of_the_same_name_elsewhere_is_not_taken(tmp_path: Path) -> None:
    files = dict(CASES["a function that compiles"])
    files["other/core/speed.py"] = files.pop("core/speed.py")
    write(tmp_path, files)
    assert found(tmp_path) == set()


def test_a_module_that_is_no_python_is_told_once(tmp_path: Path) -> None:
    files = dict(CASES["a function that compiles"])
    files["core/speed.py"] = "import hotswap\ndef (:\n"
    write(tmp_path, files)
    assert found(tmp_path) == {("core/speed.py", 2, "HSW200")}


def test_fixtures_of_the_conftests_above_are_followed(tmp_path: Path) -> None:
    conftest = """
        import pytest
        from diffusers import FluxPipeline

        @pytest.fixture
        def flux():
            return FluxPipeline.from_pretrained("tiny")
    """
    inner = """
        import pytest

        @pytest.fixture
        def served(flux):
            flux.enable_lora_hotswap(target_rank=8)
            flux.load_lora_weights("a", adapter_name="look")
            flux.transformer.compile()
            yield flux
    """
    tests = """
        def test_swaps(served):
            served.load_lora_weights("b", adapter_name="look", hotswap=True)

        def test_adds(served):
            served("x")
            served.load_lora_weights("b", adapter_name="other")  # want HSW206
    """
    files = {"tests/conftest.py": conftest, "tests/web/conftest.py": inner}
    wanted = write(tmp_path, {**files, "tests/web/test_app.py": tests})
    assert found(tmp_path) == wanted
    elsewhere = write(tmp_path, {"web/test_app.py": tests.replace("# want", "#")})
    assert {place for place in found(tmp_path) if place[0] == "web/test_app.py"} == elsewhere


def test_a_file_that_takes_no_step_itself_is_followed_into_two_others(tmp_path: Path) -> None:
    load = """
        from diffusers import FluxPipeline

        def load():
            flux = FluxPipeline.from_pretrained("base")
            flux.load_lora_weights("a", adapter_name="look")
            return flux

        def change(flux, path):
            flux.load_lora_weights(path, adapter_name="look", hotswap=True)  # want HSW205
    """
    serve = """
        from functools import partial
        import loading

        class Served:
            def __init__(self):
                self.flux = loading.load()
                self.flux.transformer.compile()
                self.use = partial(loading.change, self.flux)
    """
    main = """
        import sys
        from serve import Served

        served = Served()
        for path in sys.argv[1:]:
            served.use(path)
            served.flux("x")
    """
    files = {"loading.py": load, "serve.py": serve, "main.py": main}
    wanted = write(tmp_path, files)
    assert found(tmp_path) == wanted
    write(tmp_path, {"main.py": main.replace("served.use", "print")})
    assert found(tmp_path) == set()
