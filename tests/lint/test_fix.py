"""``--fix`` moves a preparation before the compile where that is safe, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotswap.lint.check import check_source
from hotswap.lint.fix import fixes

HEAD = """\
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a")
"""
COMPILE = "model = torch.compile(model)\n"
PREPARE = "prepare_model_for_compiled_hotswap(model, target_rank=8)\n"


def fixed(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return fixes(check_source(path)).get(path, path.read_bytes()).decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (COMPILE + PREPARE, PREPARE + COMPILE),
        (COMPILE + "print('x')\n" + PREPARE, PREPARE + COMPILE + "print('x')\n"),
        ("model.compile()\n" + PREPARE, PREPARE + "model.compile()\n"),
        (
            "model = torch.compile(\n    model,\n)\n\n# why\n"
            + PREPARE.replace("(model, ", "(\n    model, "),
            "# why\n"
            + PREPARE.replace("(model, ", "(\n    model, ")
            + "model = torch.compile(\n    model,\n)\n\n",
        ),
        (
            COMPILE + "# of the line above\n\n# why\n# so\n" + PREPARE,
            "# why\n# so\n" + PREPARE + COMPILE + "# of the line above\n\n",
        ),
    ],
)
def test_a_safe_move_is_made_and_the_file_lints_clean(
    tmp_path: Path, before: str, after: str
) -> None:
    path = tmp_path / "serve.py"
    assert fixed(path, HEAD + before) == HEAD + after
    path.write_text(HEAD + after)
    assert check_source(path) == []


def test_a_move_inside_a_function_keeps_its_line_ends(tmp_path: Path) -> None:
    lines = [f"    {line}" for line in (COMPILE, PREPARE)]
    text = HEAD + "def main(model):\n" + "".join(lines) + "    return model\n"
    moved = HEAD + "def main(model):\n" + "".join(reversed(lines)) + "    return model\n"
    assert fixed(tmp_path / "a.py", text.replace("\n", "\r\n")) == moved.replace("\n", "\r\n")


@pytest.mark.parametrize(
    "between",
    [
        "model(torch.ones(1))\n",
        "rank = 8\nwith torch.no_grad():\n    pass\n",
        "other = model\n",
        "import os\n",
    ],
)
def test_nothing_moves_past_a_use_of_the_model_or_a_block(tmp_path: Path, between: str) -> None:
    text = HEAD + COMPILE + between + PREPARE
    assert fixed(tmp_path / "a.py", text) == text


def test_a_name_that_the_preparation_needs_stays_before_it(tmp_path: Path) -> None:
    text = HEAD + COMPILE + "rank = 8\n" + PREPARE.replace("8", "rank")
    assert fixed(tmp_path / "a.py", text) == text


@pytest.mark.parametrize(
    "text",
    [
        HEAD + COMPILE.strip() + "; " + PREPARE,
        HEAD + "fast = torch.compile(model)\nfast(torch.ones(1))\n" + PREPARE,
        HEAD + COMPILE + f"if True:\n    {PREPARE}",
        HEAD + COMPILE + PREPARE.strip(),
    ],
)
def test_what_is_not_provably_safe_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.py"
    assert fixed(path, text) == text
    assert [f.code for f in check_source(path)] == ["HSW201"]
