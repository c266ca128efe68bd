"""Every rule fires where its sample file says, and nowhere else; its documentation is true."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from hotswap.findings import RULES as NAMES
from hotswap.lint.check import check_source, check_text
from hotswap.lint.rules import RULES, Rule
from hotswap.lint.settings import Settings
from tests.support.lint_samples import SAMPLES, places, wanted

FILES = sorted(SAMPLES.glob("*.py"))
PRELUDE = """
import torch
from diffusers import FluxPipeline
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained("base")
pipe = FluxPipeline.from_pretrained("base")
paths = ["adapters/a", "adapters/b"]
"""
LOADED = 'model = PeftModel.from_pretrained(base, "adapter-a")\n'
PREPARED = "prepare_model_for_compiled_hotswap(model, target_rank=64)\n"
STYLE = 'pipe.load_lora_weights("adapter-a", adapter_name="style")\n'
ENABLED = "pipe.enable_lora_hotswap(target_rank=64)\n" + STYLE
COMPILED = "pipe.transformer.compile()\n"
BEFORE = {
    "HSW204": LOADED,
    "HSW206": ENABLED,
    "HSW210": ENABLED + COMPILED + LOADED + PREPARED + "model = torch.compile(model)\n",
    "HSW211": LOADED,
    "HSW212": ENABLED + 'pipe.load_lora_weights("other", adapter_name="other")\n' + COMPILED,
    "HSW214": LOADED + PREPARED + "model = torch.compile(model)\n",
    "HSW215": LOADED + PREPARED,
    "HSW217": LOADED,
}
"""What an example takes for granted."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_sample_is_reported_where_it_says(path: Path) -> None:
    assert places(check_source(path, select=["HSW2"])) == wanted(path)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_noqa_silences_a_sample(path: Path, tmp_path: Path) -> None:
    text = re.sub(r"# want (HSW\d+)", r"# noqa: \1", path.read_text())
    quiet = tmp_path / path.name
    quiet.write_text(text)
    assert check_source(quiet, select=["HSW2"]) == []
    other = tmp_path / "other_code.py"
    other.write_text(text.replace("# noqa: HSW", "# noqa: E"))
    assert places(check_source(other, select=["HSW2"])) == wanted(path)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda r: r.code)
def test_every_rule_has_a_sample_with_bad_and_good_code(rule: Rule) -> None:
    path = SAMPLES / f"{rule.name.replace('-', '_')}.py"
    text = path.read_text()
    bad = [line for line, code in wanted(path) if code == rule.code]
    functions = text.count("\ndef ") - text.count("\ndef loaded") - text.count("\ndef pipeline")
    assert 0 < len(bad) < functions


def test_every_source_code_in_the_registry_has_a_rule() -> None:
    assert {code for code in NAMES if code.startswith("HSW2")} == set(RULES)


def test_the_rules_for_hints_are_off_unless_asked_for() -> None:
    assert Settings().codes == {code for code in RULES if not code.startswith("HSW29")}
    hints = Settings(["HSW29"], ignore=["adapter-toggle-on-compiled"])
    assert hints.codes == {"HSW292", "HSW293"}
    with pytest.raises(ValueError, match="no rule matches 'HSW9'"):
        _ = Settings(["HSW9"]).codes


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda r: r.code)
def test_the_examples_of_the_documentation_are_bad_and_good(rule: Rule) -> None:
    _, bad, good = re.split(r"^(?:Bad|Good):\n", rule.documentation, flags=re.MULTILINE)
    before = PRELUDE + BEFORE.get(rule.code, "")
    if rule.code == "HSW210":
        bad = f"for layer in model.modules():\n{textwrap.indent(textwrap.dedent(bad), '    ')}"
        good = f"for layer in model.modules():\n{textwrap.indent(textwrap.dedent(good), '    ')}"
    found = check_text(before + textwrap.dedent(bad), select=["HSW2"])
    assert rule.code in {f.code for f in found}
    assert check_text(before + textwrap.dedent(good), select=["HSW2"]) == []
