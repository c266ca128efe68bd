"""Hub ids: config and header through huggingface_hub, against a server on this machine."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

import hotswap
from hotswap.adapters import hub as hub_module
from tests.support import warm
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
        out = asked(SCRIPT, tmp_path, endpoint, *(f"org/{name}" for name in names))
    *found, modules = out.splitlines()
    expected = {"wrong": "HSW104", "pickle": "HSW006", "torn": "HSW005", "none": "HSW001"}
    assert sorted(found) == sorted(f"org/{name} {code}" for name, code in expected.items())
    assert modules.split()[0] == "layers.0.q_proj"
    weights = [ranged for path, ranged in seen if path.endswith(".safetensors")]
    assert weights
    assert set(weights) == {"bytes=0-100000"}


# what a forked process has imported has read another environment
ANEW = """
import sys, warnings
warnings.simplefilter("ignore")
for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]
"""


def asked(script: str, folder: Path, endpoint: str, *words: str, **env: str) -> str:
    """Run a script that asks the hub at an endpoint, with a cache in the folder."""
    (folder / "here").mkdir(exist_ok=True)
    done = warm.run(
        [sys.executable, "-c", ANEW + script, *words],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "cache"),
            "NO_PROXY": "127.0.0.1",
            **env,
        },
        cwd=folder / "here",
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return done.stdout


SENTENCES = """
import sys, hotswap
for word in sys.argv[1:]:
    for found in hotswap.check_adapters(word) or [None]:
        print(word, found)
"""


def test_a_folder_a_file_a_revision_and_an_address_are_understood(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    write_adapter(root / "org" / "good")
    write_adapter(root / "org" / "many" / "sub" / "one")
    tensors = {
        "unet.to_q.lora_A.weight": ("F32", (2, 8)),
        "unet.to_q.lora_B.weight": ("F32", (8, 2)),
    }
    diffusers_file(root / "org" / "many" / "other.safetensors", tensors, None)
    with hub(root) as (endpoint, seen):
        good = [
            "org/good@main",
            f"{endpoint}/org/good",
            f"{endpoint}/org/good/tree/main",
            f"{endpoint}/org/many/tree/main/sub/one",
            f"{endpoint}/org/many/resolve/main/other.safetensors",
            f"{endpoint}/org/many/blob/v2/sub/one/adapter_model.safetensors",
            "org/many/other.safetensors",
            "org/many/sub/one/adapter_model.safetensors",
        ]
        out = asked(SENTENCES, tmp_path, endpoint, *good, "org/many", "org/many/no.safetensors")
    found = dict(line.split(" ", 1) for line in out.splitlines())
    assert {word: found.pop(word) for word in good} == dict.fromkeys(good, "None")
    assert "HSW002" in found["org/many"]
    assert "which has other.safetensors, sub/one/adapter_model.safetensors" in found["org/many"]
    assert "pass org/many/other.safetensors" in found["org/many"]
    assert "HSW004" in found["org/many/no.safetensors"]
    assert any(path.endswith("/resolve/v2/sub/one/adapter_model.safetensors") for path, _ in seen)


def test_what_the_hub_refuses_is_told_apart(tmp_path: Path) -> None:
    codes = {"org/private": 401, "org/gated": 403, "org/busy": 429, "org/broken": 503}
    (tmp_path / "hub").mkdir()
    with hub(tmp_path / "hub", codes) as (endpoint, _):
        start = time.monotonic()
        out = asked(SENTENCES, tmp_path, endpoint, *codes, "org/none")
        assert time.monotonic() - start < 20  # of which most is the import
    found = dict(line.split(" ", 1) for line in out.splitlines())
    words = {"private": "HF_TOKEN", "gated": "HF_TOKEN", "busy": "too often", "broken": "(503)"}
    for name, expected in words.items():
        assert "HSW001" in found[f"org/{name}"]
        assert expected in found[f"org/{name}"]
        assert "no folder or file here" not in found[f"org/{name}"]
    assert "is no folder or file here" in found["org/none"]


SWAP = """
import sys, torch, hotswap
from peft import LoraConfig, PeftModel, get_peft_model
net = torch.nn.Sequential(torch.nn.Linear(32, 16))
model = get_peft_model(net, LoraConfig(r=8, target_modules=["0"]))
hotswap.prepare(model, target_rank=8)
for word in sys.argv[1:]:
    try:
        print(word, hotswap.swap(model, word).adapter)
    except hotswap.HotswapError as error:
        print(word, error)
"""


def test_a_swap_fetches_what_a_check_reads_and_takes_the_cache_without_a_hub(
    tmp_path: Path,
) -> None:
    root = tmp_path / "hub"
    write_adapter(root / "org" / "good", modules={"0": (32, 16)})
    with hub(root) as (endpoint, _):
        words = ["org/good", f"{endpoint}/org/good"]
        out = asked(SWAP, tmp_path, endpoint, *words)
    assert out.splitlines() == [f"{word} {word}" for word in words]
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        out = asked(SWAP, tmp_path, "http://127.0.0.1:9", "org/good", "org/other", **env)
        good, other = out.splitlines()
        assert good == "org/good org/good"
        assert "HSW001" in other or "is no folder or file here" in other
        out = asked(SENTENCES, tmp_path, "http://127.0.0.1:9", "org/good", "org/other", **env)
        good, other = out.splitlines()
        assert (good, "HSW001" in other) == ("org/good None", True)


PICKLES = """
import sys, torch, hotswap
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
net = torch.nn.Sequential(torch.nn.Linear(32, 16))
model = get_peft_model(net, LoraConfig(r=8, target_modules=["0"]))
hotswap.prepare(model, target_rank=8)
word = "org/pickle"
for allowed, offline in ((False, False), (True, False), (False, True), (True, True)):
    constants.HF_HUB_OFFLINE = offline
    ways = (
        lambda: " ".join(f.code for f in hotswap.check_adapters(word, allow_pickle=allowed)),
        lambda: len(hotswap.plan([word], allow_pickle=allowed).modules),
        lambda: hotswap.swap(model, word, allow_pickle=allowed).adapter,
    )
    for way in ways:
        try:
            print(way())
        except hotswap.HotswapError as error:
            print(error.findings[0].code, error.findings[0].remedy)
"""


def test_pickles_on_the_hub_are_taken_where_that_is_allowed(tmp_path: Path) -> None:
    import torch

    root = tmp_path / "hub"
    folder = write_adapter(
        root / "org" / "pickle", modules={"0": (32, 16)}, config={"task_type": None}
    )
    tensors = {
        "base_model.model.0.lora_A.weight": torch.ones(8, 32),
        "base_model.model.0.lora_B.weight": torch.ones(16, 8),
    }
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with hub(root) as (endpoint, _):
        out = asked(PICKLES, tmp_path, endpoint).splitlines()
    assert [line.partition(" ")[0] for line in (*out[:3], *out[6:9])] == ["HSW006"] * 6
    assert all("--allow-pickle" in line for line in out[1:3])
    assert out[3:6] == out[9:] == ["", "1", "org/pickle"]


PIPELINE = """
import sys, hotswap
from pathlib import Path
from tests.support.pipelines import stable_diffusion, write_pipeline_adapter
folder = Path(sys.argv[1])
first = write_pipeline_adapter(folder, stable_diffusion(folder), seed=1, parts=("unet",), r=2)
pipeline = stable_diffusion(folder)
pipeline.load_lora_weights(str(first))
hotswap.prepare(pipeline, target_rank=4)
for word in sys.argv[2:]:
    print(word, hotswap.swap(pipeline, word).adapter)
"""


def test_a_pipeline_takes_a_file_of_diffusers_from_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{key}.lora_A.weight": ("F32", (2, 8)), f"{key}.lora_B.weight": ("F32", (8, 2))}
    root = tmp_path / "hub"
    diffusers_file(root / "org" / "style" / "pytorch_lora_weights.safetensors", tensors, None)
    diffusers_file(root / "org" / "named" / "own.safetensors", tensors, None)
    words = ["org/style", "org/named/own.safetensors"]
    with hub(root) as (endpoint, _):
        here = {"PYTHONPATH": str(Path(__file__).parents[2])}
        out = asked(PIPELINE, tmp_path, endpoint, str(tmp_path / "first"), *words, **here)
    assert out.splitlines() == [f"{word} {word}" for word in words]


def test_what_begins_with_a_folder_that_is_here_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    (found,) = hotswap.check_adapters("adapters/typo")
    assert (found.code, "the adapter folder does not exist" in found.message) == ("HSW001", True)


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


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 Connection established\r\n\r\n", ""),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", ""),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answers 502"),
        (b"", "timed out"),
    ],
)
def test_a_hub_behind_a_dead_proxy_is_unreachable(
    answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that says nothing, or that it cannot pass anything on, is told within the patience."""
    monkeypatch.setattr(hub_module, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, asked_for = server.getsockname()[1], []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked_for.append(connection.recv(500))
                connection.sendall(answer)
                connection.recv(1)  # until the other side has enough

        thread = threading.Thread(target=serve)
        thread.start()
        proxy = f"http://name:word@127.0.0.1:{port}"
        found = hub_module._connection("https://hub.invalid", proxy, 0)
        thread.join()
    assert words in str(found) if words else found is None
    assert b"CONNECT hub.invalid:443" in asked_for[0]
    assert b"Basic bmFtZTp3b3Jk" in asked_for[0]
    refused = hub_module._connection("https://hub.invalid", f"127.0.0.1:{port}", 0)
    assert isinstance(refused, OSError)  # now nobody listens there
