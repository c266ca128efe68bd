"""docs/lint.md tells what the registry and the command say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hotswap.cli.main import main
from hotswap.lint.rules import table


@pytest.fixture
def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "lint.md").read_text(encoding="utf-8")


def test_the_table_of_rules_is_the_registry(page: str) -> None:
    (shown,) = re.findall(r"<!-- rules: [^\n]*-->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert shown == table()


def test_the_example_is_what_the_command_prints(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (expected,) = re.findall(r"\$ hotswap lint src docs\n(.*?)```", page, re.DOTALL)
    (tmp_path / "src").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "src" / "serve.py").write_text(
        "import torch\nfrom peft import PeftModel\n"
        "from peft.utils.hotswap import prepare_model_for_compiled_hotswap\n"
        "from transformers import AutoModelForCausalLM\n"
        + "\n"
        * 6
        + 'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a")\n'
        "model = torch.compile(model)\nprepare_model_for_compiled_hotswap(model, target_rank=64)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["lint", "src", "docs"]) == 1
    assert capsys.readouterr().out == expected


def test_explain_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--markdown"]) == 0
    assert capsys.readouterr().out == f"{table()}\n"
