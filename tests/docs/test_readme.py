"""The README's blocks run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import warm

README = Path(__file__).parents[2] / "README.md"
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


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def commands(name: str) -> list[str]:
    """The lines of the console blocks that start with a command."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith(f"$ {name} ")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    run(folder, sys.executable, "-c", SET_UP)
    return folder


def run(folder: Path, *command: str) -> str:
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": scripts, "HF_HUB_OFFLINE": "1"}
    if command[0] == sys.executable:
        done = warm.run(command, cwd=folder, env=environment)
    else:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=environment, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_example_runs(project: Path) -> None:
    code = blocks("python")[0].replace("compile(model)", "compile(model, backend='eager')")
    assert "Target rank: 8" in run(project, sys.executable, "-c", code)


def test_the_pytest_examples_pass(project: Path) -> None:
    _, production, marker = blocks("python")
    (project / "test_production.py").write_text(production)
    (project / "test_marker.py").write_text(marker)
    output = run(project, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".")
    assert " passed" in output
    assert "failed" not in output


@pytest.mark.skipif(os.name != "posix", reason="the blocks are written for a POSIX shell")
def test_the_commands_run(project: Path) -> None:
    plan, verify = commands("hotswap")
    assert "Target rank: 8" in run(project, "sh", "-c", plan)
    line = verify.replace(" #", " --backend eager --no-timing -- -k 'not any_swap_sequence' #")
    shown = run(project, "sh", "-c", line)
    assert shown.splitlines()[-1].startswith("ready to hot-swap: 3 adapters, target rank 8, 0 ")


def test_the_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in commands("make")]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
