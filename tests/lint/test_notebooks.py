"""Notebooks: magics that run Python are Python, others are left out, and lines keep their numbers."""

from __future__ import annotations

import json

import pytest

from hotswap.lint.check import check_text
from hotswap.lint.notebooks import as_python

IMPORTS = """\
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap as pad"""
COMPILE = 'voice = torch.compile(PeftModel.from_pretrained(base, "warm"))'
PAD = "pad(voice, target_rank=16)"


def notebook(*cells: str | list[str]) -> str:
    made = [{"cell_type": "code", "source": cell} for cell in cells]
    return json.dumps({"cells": made, "nbformat": 4})


def places(text: str) -> list[tuple[str, str, int | None]]:
    return [(f.code, f.where.partition("::")[2], f.line) for f in check_text(text, path="n.ipynb")]


@pytest.mark.parametrize(
    "cell",
    [
        COMPILE,
        f"gpus = !nvidia-smi -L\n{COMPILE}",
        f"speed = %timeit -n 3 -o torch.ones(2)\n{COMPILE}",
        f"%time {COMPILE}",
        f"%%time\n{COMPILE}",
        f"%%capture out\n{COMPILE}",
        f"\n%%prun -l 5\n{COMPILE}",
        f"%%memit\n{COMPILE}",
        f"%%wandb\n{COMPILE}",
        f"%%timeit -n 1 -r 1\n{COMPILE}",
        f"torch?\n{COMPILE}",
        f"?torch\n{COMPILE}",
        f"!pip install \\\n  torch peft\n{COMPILE}",
        f"left = (100\n  % 7)\n{COMPILE}",
        f"import asyncio\nawait asyncio.sleep(0)\n{COMPILE}",
        f"with torch.no_grad():\n    !ls\n    {COMPILE}",
    ],
)
def test_a_cell_with_magics_is_run_like_the_others(cell: str) -> None:
    assert places(notebook(IMPORTS, cell, PAD)) == [("HSW201", "cell 3", 1)]


@pytest.mark.parametrize("magic", ["%time", "%prun -s cumulative", "result = %timeit -o"])
def test_what_a_line_magic_runs_is_found_in_its_line(magic: str) -> None:
    assert places(notebook(IMPORTS, COMPILE, f"# late\n{magic} {PAD}")) == [("HSW201", "cell 3", 2)]


@pytest.mark.parametrize("magic", ["%%bash", "%%html", "%%writefile serve.py", "%%python", "%%R"])
def test_a_cell_in_another_language_is_left_out(magic: str) -> None:
    assert places(notebook(IMPORTS, COMPILE, f"{magic}\n{PAD}", "print('done')")) == []


def test_a_source_is_a_text_or_a_list_of_lines() -> None:
    lines = [*(f"{line}\n" for line in IMPORTS.splitlines()), COMPILE]
    assert places(notebook(lines, PAD)) == [("HSW201", "cell 2", 1)]


def test_the_third_format_has_worksheets() -> None:
    cells = [
        {"cell_type": "code", "input": f"{IMPORTS}\n{COMPILE}\n"},
        {"cell_type": "markdown", "source": "text"},
        {"cell_type": "code", "input": [PAD]},
    ]
    text = json.dumps({"worksheets": [{"cells": cells}], "nbformat": 3})
    assert places(text) == [("HSW201", "cell 3", 1)]


def test_what_looks_like_a_magic_in_a_string_is_kept() -> None:
    source = 'text = """\n%time is money\n!\n"""'
    assert as_python(source) == source
    assert as_python("a = b\n  % c").splitlines() == ["a = b", "  pass"]


def test_noqa_counts_in_a_cell() -> None:
    assert places(notebook(IMPORTS, COMPILE, f"{PAD}  # noqa: HSW201")) == []
