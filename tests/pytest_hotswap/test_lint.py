"""``pytest --hotswap-lint``: one item for each file with source code that pytest visits."""

from __future__ import annotations

import pytest

BAD = 'pipe.load_lora_weights("b", hotswap=True)\n'


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_ok="def test_ok():\n    pass\n")
    pytester.makefile(".md", docs=f"```python\n{BAD}```\n")
    pytester.mkdir("src")
    (pytester.path / "src" / "app.py").write_text(BAD)
    (pytester.path / "src" / "fine.py").write_text("x = 1\n")
    return pytester


def test_nothing_is_linted_without_the_option(project: pytest.Pytester) -> None:
    result = project.runpytest("test_ok.py", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*hotswap-lint*")


def test_each_file_is_an_item(project: pytest.Pytester) -> None:
    result = project.runpytest("--hotswap-lint", "-v")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "hotswap-lint: 4 files in .",
            "docs.md::hotswap-lint FAILED*",
            "src/app.py::hotswap-lint FAILED*",
            "src/fine.py::hotswap-lint PASSED*",
            "test_ok.py::hotswap-lint PASSED*",
            "test_ok.py::test_ok PASSED*",
            "src/app.py:1:1: HSW207 hotswap-without-name",
            "  help: give the name*",
        ],
    )


def test_other_folders_are_named_in_the_ini_file(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nhotswap_lint_paths =\n    src\n")
    result = project.runpytest("--hotswap-lint", "-v", "test_ok.py")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["hotswap-lint: 3 files in test_ok.py, src"])
    assert project.runpytest("test_ok.py").ret == 0


def test_lint_items_can_be_deselected(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nhotswap_lint_paths = src\n")
    project.runpytest("--hotswap-lint", "-k", "fine").assert_outcomes(passed=1, deselected=4)


def test_noqa_silences_an_item(project: pytest.Pytester) -> None:
    (project.path / "src" / "app.py").write_text(f"{BAD.strip()}  # noqa: HSW207\n")
    project.runpytest("--hotswap-lint", "src").assert_outcomes(passed=2)


def test_a_file_that_is_not_analysed_is_skipped_and_told(project: pytest.Pytester) -> None:
    (project.path / "src" / "app.py").write_text("import hotswap\nhotswap.swap(\n")
    result = project.runpytest("--hotswap-lint", "src", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*not analysed: it is no Python*"])


def test_pyproject_says_which_rules_and_files(project: pytest.Pytester) -> None:
    project.makepyprojecttoml('[tool.hotswap.lint]\nignore = ["HSW207"]\nexclude = ["fine.py"]\n')
    project.runpytest("--hotswap-lint", "src").assert_outcomes(passed=1)
