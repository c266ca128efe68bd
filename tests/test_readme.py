"""The README's Python blocks run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
SET_UP = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, vocab_size=32,
)
LlamaForCausalLM(config).save_pretrained("base")
for name, rank in [("a", 2), ("b", 4), ("c", 8)]:
    base = LlamaForCausalLM.from_pretrained("base")
    lora = LoraConfig(
        r=rank, lora_alpha=rank + 1, target_modules=["q_proj"], init_lora_weights=False
    )
    get_peft_model(base, lora).save_pretrained(f"adapters/{name}")
"""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    run(folder, "-c", SET_UP)
    return folder


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_example_runs(project: Path) -> None:
    output = run(
        project,
        "-c",
        blocks()[0].replace("torch.compile(model)", "torch.compile(model, backend='eager')"),
    )
    assert "target rank" in output.lower()


def test_the_pytest_examples_pass(project: Path) -> None:
    (project / "test_production.py").write_text(blocks()[1])
    (project / "test_marker.py").write_text(blocks()[2])
    output = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".")
    assert " passed" in output
    assert "failed" not in output
