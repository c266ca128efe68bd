"""Options, ini keys, the header, and the subject that is built from them."""

from __future__ import annotations

import pytest

from tests.support.warm import run_pytest

SUBJECT = """
class Mine:
    def __init__(self, *, base=None, adapters=(), backend="eager"):
        self.base, self.adapters, self.backend = base, adapters, backend

class Stubborn:
    def __init__(self):
        pass

number = 3
"""
SHOW = """
def test_show(hotswap_subject, pytestconfig):
    s = hotswap_subject
    adapters = [str(a).removeprefix(str(pytestconfig.rootpath)) for a in s.adapters]
    print("SUBJECT", type(s).__module__, type(s).__name__, s.base, adapters, s.backend)
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return run_pytest(pytester, "-s", "-p", "no:cacheprovider", *arguments)


def test_every_option_is_in_the_help(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--help")
    for name in ("base", "adapters", "subject", "backend", "report"):
        result.stdout.fnmatch_lines([f"*--hotswap-{name}*"])
        result.stdout.fnmatch_lines([f"*hotswap_{name} (*"])


def test_an_unknown_backend_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--hotswap-backend", "fast")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*invalid choice: 'fast'*"])


def test_an_unknown_backend_in_the_ini_file_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nhotswap_backend = fast\n")
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*hotswap_backend is 'fast' in the ini file; choose from eager*"])


def test_the_header_names_the_subject(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--hotswap-subject", "mine:Mine", "--hotswap-adapters", "a/*")
    result.stdout.fnmatch_lines(["hotswap: subject mine:Mine; adapters a/[*]"])


def test_the_header_is_silent_without_a_subject(pytester: pytest.Pytester) -> None:
    run(pytester).stdout.no_fnmatch_line("hotswap:*")


def test_the_subject_is_built_from_the_options(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mine=SUBJECT, test_show=SHOW)
    result = run(
        pytester,
        "--hotswap-subject=mine:Mine",
        "--hotswap-base=base",
        "--hotswap-adapters=a/*",
        "--hotswap-adapters=b",
        "--hotswap-backend=inductor",
    )
    result.stdout.fnmatch_lines(
        ["*SUBJECT mine Mine base [[]'/a/[*]', '/b'[]] inductor*"],
    )


def test_the_subject_is_built_from_the_ini_file(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nhotswap_subject = sub/mine.py:Mine\nhotswap_base = base\n"
        "hotswap_adapters =\n    a b/*\n    c\nhotswap_backend = aot_eager\n"
    )
    pytester.mkdir("sub").joinpath("mine.py").write_text(SUBJECT)
    tests = pytester.mkdir("tests")
    tests.joinpath("test_show.py").write_text(SHOW)
    result = run_pytest(pytester, "-s", "-c", "tox.ini", "tests")
    result.stdout.fnmatch_lines(["*SUBJECT mine Mine base [[]'/a b/[*]', '/c'[]] aot_eager*"])


def test_an_option_goes_before_the_ini_file(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nhotswap_subject = absent:Absent\nhotswap_base = ini\nhotswap_adapters = ini\n"
        "hotswap_backend = inductor\n"
    )
    pytester.makepyfile(mine=SUBJECT, test_show=SHOW)
    result = run(
        pytester,
        "--hotswap-subject=mine.py:Mine",
        "--hotswap-base=option",
        "--hotswap-adapters=option",
        "--hotswap-backend=eager",
    )
    result.stdout.fnmatch_lines(["*SUBJECT mine Mine option [[]'/option'[]] eager*"])


def test_what_is_not_configured_stays_the_class_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mine=SUBJECT, test_show=SHOW)
    result = run(pytester, "--hotswap-subject=mine:Mine")
    result.stdout.fnmatch_lines(["*SUBJECT mine Mine None [[][]] eager*"])


def test_a_subject_in_a_test_file_is_the_class_that_pytest_collects(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        test_mine=SUBJECT
        + "\ndef test_same(hotswap_subject):\n    assert type(hotswap_subject) is Mine\n"
    )
    result = run(pytester, "--hotswap-subject=test_mine.py:Mine", "test_mine.py")
    result.assert_outcomes(passed=1)


def test_a_file_with_the_name_of_another_module_is_still_that_file(
    pytester: pytest.Pytester,
) -> None:
    pytester.mkdir("sub").joinpath("json.py").write_text(SUBJECT)
    pytester.makepyfile(test_show=SHOW)
    result = run(pytester, "--hotswap-subject=sub/json.py:Mine")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*SUBJECT _hotswap_subject_json_* Mine*"])


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("mine", "write module:Class or path/file.py:Class"),
        ("absent:Mine", "cannot import absent: ModuleNotFoundError"),
        ("absent.py:Mine", "cannot import absent.py: FileNotFoundError"),
        ("mine:Absent", "mine has no such name"),
        ("mine:number", "mine has number = 3, not a class"),
        ("mine:Stubborn", "Stubborn(base=…) cannot be called"),
    ],
)
def test_a_bad_subject_is_a_usage_error_in_one_sentence(
    pytester: pytest.Pytester, subject: str, message: str
) -> None:
    pytester.makepyfile(mine=SUBJECT, test_show=SHOW)
    result = run(pytester, "--hotswap-base=b", f"--hotswap-subject={subject}")
    result.assert_outcomes(errors=1)
    at = next(n for n, line in enumerate(result.outlines) if "ERROR at setup of test_show" in line)
    assert message in result.outlines[at + 1]  # a sentence, and no frame of the plugin above it


def test_no_subject_and_no_base_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SHOW)
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["there is no deployment to test: give --hotswap-base PATH *"])


def test_a_contract_class_that_cannot_be_collected_says_why_in_a_sentence(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        from pytest_hotswap import HotswapContract, ReferenceSubject

        class Production(ReferenceSubject):
            base = "base"
            adapters = "nothing/*"

        class TestClass(HotswapContract):
            subject = Production

        class TestInstance(HotswapContract):
            subject = Production()
        """
    )
    result = run(pytester)
    result.assert_outcomes(errors=2)
    told = [line for line in result.outlines if "Production" in line]
    assert told == [
        f"Production.adapters nothing/*: matches nothing in {pytester.path}",
        "TestInstance.subject is an instance of Production; give the class: subject = Production",
    ]
    result.stdout.no_fnmatch_line("*contract.py*")
