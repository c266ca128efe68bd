"""What the plugin costs, and how it is switched on and off."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.warm import run_pytest

LIST_MODULES = """
import sys

PACKAGES = ("torch", "peft", "transformers", "hypothesis", "hotswap", "pytest_hotswap")

def pytest_collection_finish(session):
    print("LOADED", sorted(name for name in sys.modules if name.partition(".")[0] in PACKAGES))
"""
PASSING = "def test_one():\n    assert True\n"


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


@pytest.mark.wheel
def test_a_project_without_hotswap_tests_loads_only_the_plugin_file(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(LIST_MODULES)
    pytester.makepyfile(PASSING)
    result = run(pytester, "-s", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*LOADED [[]'pytest_hotswap', 'pytest_hotswap.plugin'[]]"])


def test_the_list_of_loaded_modules_would_show_a_heavy_import(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(LIST_MODULES)
    pytester.makepyfile("import pytest_hotswap.fixtures, hypothesis\n" + PASSING)
    result = run(pytester, "-s", "-p", "no:hypothesispytest")
    result.stdout.fnmatch_lines(["*LOADED*'hypothesis'*'pytest_hotswap.fixtures'*"])


@pytest.mark.parametrize(
    "module", ["pytest_hotswap", "pytest_hotswap.plugin", "pytest_hotswap.fixtures"]
)
def test_importing_the_module_imports_neither_torch_nor_hypothesis(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print(sorted({'torch', 'peft', 'hypothesis', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_contract_is_registered_for_assertion_rewriting_before_it_is_imported(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import sys
        import pytest_hotswap

        def test_rewriting(request):
            hook = next(h for h in sys.meta_path if type(h).__name__ == "AssertionRewritingHook")
            assert "pytest_hotswap.contract" in hook._must_rewrite
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import pytest_hotswap

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = pytest_hotswap.Nothing
    assert set(pytest_hotswap.__all__) <= set(dir(pytest_hotswap))


def test_without_the_plugin_other_tests_run_and_a_contract_says_what_it_needs(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        test_contract="""
        from pytest_hotswap import HotswapContract, ReferenceSubject

        class TestMine(HotswapContract):
            subject = ReferenceSubject
        """,
        test_other="""
        import sys

        def test_one(request):
            assert "pytest_hotswap.plugin" not in sys.modules
        """,
    )
    laws = "test_swap_equals_load or test_preparation_covers"
    cases = ("any_first", "odd", "alike", "companion", "rewritten", "names", "placed")
    words = f"test_one or (({laws}) and {' and '.join(f'not {case}' for case in cases)})"
    result = run_pytest(pytester, "-p", "no:hotswap", "-k", words)
    result.assert_outcomes(passed=1, errors=3, deselected=result.parseoutcomes()["deselected"])
    told = [line for line in result.outlines if line.startswith("TestMine needs the plugin")]
    assert len(told) == 3
    assert "-p no:hotswap" in told[0]


def test_a_test_that_asks_for_nothing_gets_no_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "def test_one(request):\n    assert not [n for n in request.fixturenames if 'hotswap' in n]\n"
        "def test_two(request, hotswap_forbid_recompiles):\n"
        "    assert [n for n in request.fixturenames if 'hotswap' in n]\n"
    )
    run_pytest(pytester).assert_outcomes(passed=2)


def test_it_works_by_name_where_autoload_is_off(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(PASSING)
    result = run(pytester, "-p", "hotswap", "--hotswap-base", "somewhere")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["hotswap: base somewhere"])


def test_the_plugin_warns_of_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n"
    )
    pytester.makepyfile(
        "import pytest\n\n@pytest.mark.parametrize('i', [1])\n" + PASSING.replace("()", "(i)")
    )
    result = run(pytester, "--hotswap-report", "report.jsonl")
    result.assert_outcomes(passed=1, warnings=0)
