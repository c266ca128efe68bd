"""Hub ids: config and header through huggingface_hub, against a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.adapter_files import lora_tensors, write_adapter
from tests.support.adapter_samples import diffusers_file
from tests.support.hub_server import hub

SCRIPT = """
import sys, hotswap
for found in hotswap.check_adapters(sys.argv[1:], ignore=["HSW114"]):
    print(found.where.partition("::")[0], found.code)
print(*hotswap.AdapterSpec.read("org/good").modules)
"""


def test_adapters_of_the_hub_are_judged_by_their_headers(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    big = {f"layers.{n}.q_proj": (512, 512) for n in range(8)}
    write_adapter(root / "org" / "good", modules=big)
    write_adapter(root / "org" / "wrong", config={"r": 4})
    pickled = write_adapter(root / "org" / "pickle")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    torn = write_adapter(root / "org" / "torn")
    (torn / "adapter_model.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]")
    tensors = {f"unet.{k}": v for k, v in lora_tensors({"to_q": (8, 8)}).items()}
    tensors = {k.replace("base_model.model.", ""): v for k, v in tensors.items()}
    diffusers_file(root / "org" / "style" / "pytorch_lora_weights.safetensors", tensors, None)
    names = ["good", "wrong", "pickle", "torn", "style", "none"]
    with hub(root) as (endpoint, seen):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *(f"org/{name}" for name in names)],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(tmp_path / "cache"),
                "NO_PROXY": "127.0.0.1",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == ""
    *found, modules = done.stdout.splitlines()
    expected = {"wrong": "HSW104", "pickle": "HSW006", "torn": "HSW005", "none": "HSW001"}
    assert sorted(found) == sorted(f"org/{name} {code}" for name, code in expected.items())
    assert modules.split()[0] == "layers.0.q_proj"
    weights = [ranged for path, ranged in seen if path.endswith(".safetensors")]
    assert weights
    assert set(weights) == {"bytes=0-100000"}


@pytest.mark.parametrize("word", ["org/name", "a.b/c-d_e"])
def test_what_looks_like_an_id_is_one_unless_it_is_there(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.adapters.hub import looks_like_id

    monkeypatch.chdir(tmp_path)
    assert looks_like_id(word)
    (tmp_path / word).mkdir(parents=True)
    assert not looks_like_id(word)
    assert not any(looks_like_id(path) for path in ("../x", "a/b/c", "/a/b", "a", "./b", "~/b"))
