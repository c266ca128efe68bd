"""``hotswap check --package`` and ``hotswap verify --package``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hotswap.bench.timing import default_backend
from hotswap.cli.main import main
from tests.support.models import write_fleet
from tests.support.packages import Packages, needs_compiler, quickly
from tests.support.warm import verify

pytestmark = pytest.mark.filterwarnings("ignore")


def test_check_holds_adapters_to_a_package(packages: Packages, capsys: Any) -> None:
    fleet = [str(folder) for folder in packages.fleet.values()]
    assert main(["check", *fleet, "--package", str(packages.program)]) == 0
    assert capsys.readouterr().err == "3 adapters, no errors\n"
    larger = str(packages.larger)
    words = ["check", larger, "--package", str(packages.program), "--format", "json"]
    assert main(words) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["code"], finding["where"].partition("::")[0]) == ("HSW105", larger)


@needs_compiler
def test_check_judges_a_package_alone(packages: Packages, capsys: Any) -> None:
    assert main(["check", "--package", str(packages.ours)]) == 0
    capsys.readouterr()
    freezing = str(packages.of("freezing"))
    assert main(["check", "--package", freezing]) == 1
    out = capsys.readouterr().out
    assert "HSW315 constants-frozen" in out
    assert main(["check", "--package", freezing, "--ignore", "HSW31"]) == 0


@pytest.mark.parametrize("words", [[], ["--plan", "plan.json", "--package", "model.pt2"]])
def test_check_says_what_it_was_not_given(words: list[str], capsys: Any) -> None:
    assert main(["check", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_explain_knows_the_findings_of_packages(capsys: Any) -> None:
    assert main(["explain", "HSW314"]) == 0
    assert capsys.readouterr().out.startswith("HSW314 constants-folded")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, two adapters, and the package that was exported of it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import hotswap

    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).eval()
    base.save_pretrained(folder / "base")
    kinds = {
        "one": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
        "two": {"r": 4, "lora_alpha": 2, "target_modules": ["q_proj"]},
    }
    fleet = write_fleet(folder / "fleet", base, kinds)
    model = hotswap.load(base, hotswap.plan([*fleet.values()]))
    ids = torch.randint(0, 16, (2, 8), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    form: Any = "aotinductor" if default_backend() == "inductor" else "program"
    with quickly():
        hotswap.export(model, (), folder / "model.pt2", kwargs=inputs, form=form)
    return folder


def test_verify_judges_the_package_that_is_given(llama: Path) -> None:
    done = verify(
        *(str(folder) for folder in sorted((llama / "fleet").iterdir())),
        *("--base", str(llama / "base"), "--package", str(llama / "model.pt2"), "--json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["request"]["package"] == str(llama / "model.pt2")
    states = {law["law"]: law["state"] for law in told["laws"]}
    assert {law for law, state in states.items() if state != "passed"} == {
        "zero-recompiles",
        "unprepared-recompiles",
        "prepare-before-compile",
    }
    assert "nothing that could recompile" in told["verdict"]["line"]


def test_verify_says_that_there_is_no_such_package(llama: Path, capsys: Any) -> None:
    words = ["verify", str(llama / "fleet" / "one"), "--base", str(llama / "base")]
    assert main([*words, "--package", str(llama / "none.pt2")]) == 2
    assert "--package" in capsys.readouterr().err
