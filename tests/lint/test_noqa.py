"""Comments suppress findings; strings, other words and other codes do not."""

from __future__ import annotations

import pytest

from hotswap.lint.check import check_text

SWAP = 'pipe.load_lora_weights("b", hotswap=True)'


@pytest.mark.parametrize(
    ("comment", "silent"),
    [
        ("# noqa", True),
        ("#noqa", True),
        ("# type: ignore  # noqa", True),
        ("# NOQA: HSW207", True),
        ("# noqa : HSW207", True),
        ("# noqa:E501,HSW207", True),
        ("# noqa: HSW2", True),
        ("# noqa: HSW", True),
        ("# noqa: hotswap-without-name", True),
        ("# noqa: HSW207 it is meant", True),
        ("# noqa: HSW206", False),
        ("# noqa: E501", False),
        ("# noqa: any-word", False),
        ("# noqa: HSW206 not HSW207", False),
        ("# noqas", False),
        ("# no-qa", False),
    ],
)
def test_a_comment_on_the_line(comment: str, silent: bool) -> None:
    assert (check_text(f"{SWAP}  {comment}\n") == []) == silent
    spread = SWAP.replace("(", "(\n    ").replace(")", ",\n)")
    assert (check_text(f"{spread}  {comment}\n") == []) == silent


@pytest.mark.parametrize(
    ("line", "silent"),
    [
        ("# hotswap: noqa", True),
        ("# hotswap: noqa: HSW207", True),
        ("# hotswap: noqa: HSW206", False),
        ("# ruff: noqa", True),
        ("# ruff: noqa: HSW2", True),
        ("# flake8: noqa: E501, HSW207", True),
        ("# flake8: noqa", True),
        ("x = 1  # hotswap: noqa", False),
        ("x = '# hotswap: noqa'", False),
        ("# noqa", False),
    ],
)
def test_a_comment_for_the_file(line: str, silent: bool) -> None:
    assert (check_text(f'"""Text."""\n{line}\n{SWAP}\n') == []) == silent


def test_a_string_suppresses_nothing() -> None:
    assert check_text('pipe.load_lora_weights("# noqa", hotswap=True)') != []
    assert check_text('pipe.load_lora_weights("""\n# noqa\n""", hotswap=True)') != []


@pytest.mark.parametrize(
    ("comment", "told"),
    [
        ("# noqa: HSW206", ["HSW206"]),
        ("# noqa: HSW206, HSW207", ["HSW206"]),
        ("# noqa: swap-while-merged", ["HSW211"]),
        ("# noqa: HSW207", []),
        ("# noqa: HSW2", []),
        ("# noqa", []),
        ("# noqa: E501", []),
        ("# noqa: HSW206, HSW293", []),
    ],
)
def test_comments_that_suppress_nothing_are_told_if_that_is_wanted(
    comment: str, told: list[str]
) -> None:
    text = f"{SWAP}  {comment}\n"
    found = [f for f in check_text(text, select=["HSW2"]) if f.code == "HSW293"]
    assert [f.message.split()[3].rstrip(",") for f in found] == told
    assert not any(f.code == "HSW293" for f in check_text(text))
    alone = check_text(text, select=["unused-noqa"])  # whatever other rules are chosen
    assert alone == found
