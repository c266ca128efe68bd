"""``hotswap verify --tiny``: a deployment that is too large for the machine is checked on a small copy."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checks.test_tiny import write_large
from tests.support.warm import verify


def test_a_config_without_weights_is_enough_and_the_report_says_what_was_cut(
    tmp_path: Path,
) -> None:
    adapter = write_large("Llama", tmp_path)
    words = ["--base", tmp_path / "base", "--tiny", "--json", "--", "-k", "equals_load or covers"]
    ended = verify(adapter, *words)
    document = json.loads(ended.stdout)
    (found,) = document["adapters"]
    assert found["verdict"] == "passed", ended.stdout
    assert (found["ranks"], found["modules"]) == ([6], 10)  # of the files that were given
    assert document["request"]["tiny"] is True
    assert "LlamaForCausalLM, layers 2 of 5, width 64 of 144" in document["verdict"]["line"]
    assert document["verdict"]["warnings"] == []


def test_a_model_that_is_not_cut_is_one_sentence(tmp_path: Path) -> None:
    adapter = write_large("Llama", tmp_path)
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "none such"}))
    ended = verify(adapter, "--base", tmp_path / "base", "--tiny")
    assert ended.returncode == 2
    assert ended.stderr.startswith("hotswap verify: --tiny: LlamaForCausalLM is not cut")
    assert len(ended.stderr.splitlines()) == 1
