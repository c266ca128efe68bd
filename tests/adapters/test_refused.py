"""What is no adapter that can be swapped is refused by the name of what it is."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from hotswap.adapters import weights as weights_module
from hotswap.adapters.files import WEIGHTS
from hotswap.adapters.fleet import judge
from hotswap.adapters.header import read_header
from hotswap.adapters.inspect import Inspector
from hotswap.findings import RULES, Finding
from tests.support.adapter_files import Tensors, safetensors_bytes, write_adapter


def only(path: Path) -> Finding:
    (found,) = Inspector()(str(path)).findings
    return found


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "HSW005", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "HSW005", "HTML page"),
        (b"<html><body>login</body></html>", "HSW005", "HTML page"),
        (b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", "HSW005", "gguf"),
        (zipped(), "HSW006", "torch.save"),
        (b"\x80\x02}q\x00.         ", "HSW006", "torch.save"),
    ],
)
def test_a_file_of_another_kind_is_named(
    content: bytes, code: str, words: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path)
    (folder / WEIGHTS).write_bytes(content)
    found = only(folder)
    assert found.code == code
    assert words in str(found)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.bin", "lone.bin", "lone.gguf"]
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF\x03\0\0\0", "gguf"),
    ],
)
def test_a_file_of_another_kind_is_named_under_any_name(
    content: bytes, words: str, name: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path)
    if name == "adapter_model.bin":
        (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(content)
    path = folder / name if name.startswith("lone") else folder
    for allowed in (False, True):
        (found,) = Inspector(allow_pickle=allowed)(str(path)).findings
        assert (found.code, words in str(found)) == ("HSW005", True)


def test_a_folder_in_which_the_weights_have_another_name_says_which(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    (folder / WEIGHTS).rename(folder / "own.safetensors")
    assert only(folder).remedy == f"pass {folder / 'own.safetensors'}"
    assert only(folder).code == "HSW004"
    assert Inspector()(str(folder / "own.safetensors")).findings == ()
    (folder / "adapter_config.json").unlink()
    (folder / WEIGHTS).touch()  # which is nothing without its config
    assert (only(folder).code, "own.safetensors" in only(folder).remedy) == ("HSW002", True)


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    tensors = safetensors_bytes({"q.lora_A.weight": ("F32", (8, 4))})
    length = int.from_bytes(tensors[:8], "little")
    header = tensors[8 : 8 + length].ljust(0x280)
    (tmp_path / "a.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + tensors[8 + length :]
    )
    assert list(read_header(tmp_path / "a.safetensors")) == ["q.lora_A.weight"]


LAYER = "lora_unet_down_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{LAYER}.hada_w1_a": ("F32", (8, 4)), f"{LAYER}.alpha": ("F32", ())}, "LoHa"),
        ({f"{LAYER}.lokr_w1": ("F32", (8, 4)), f"{LAYER}.alpha": ("F32", ())}, "LoKr"),
        ({f"{LAYER}.oft_blocks": ("F32", (2, 4, 4))}, "OFT"),
        ({"layers.0.q_proj.lora_a": ("F32", (8, 4))}, "mlx-lm"),
        ({"layers.0.attn.q_proj.lora_a.weight": ("F32", (4, 8))}, "torchtune"),
        ({"decoder.layers.0.linear_qkv.adapter.linear_in.weight": ("F32", (4, 8))}, "Megatron"),
        ({"model.layers.0.q_proj.weight": ("F32", (8, 8))}, "whole model"),
    ],
)
def test_a_method_or_program_of_another_kind_is_named(
    tensors: Tensors, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.safetensors"
    file.write_bytes(safetensors_bytes(tensors))
    found = only(file)
    assert found.code == "HSW101"
    assert words in found.message
    assert "remove the tensor" not in found.remedy


def test_a_folder_of_mlx_is_named(tmp_path: Path) -> None:
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 20.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapters.safetensors").write_bytes(
        safetensors_bytes({"layers.0.q_proj.lora_a": ("F32", (8, 4))})
    )
    for path in (tmp_path, tmp_path / "adapters.safetensors"):
        assert only(path).code == "HSW101"
        assert "mlx-lm" in only(path).message


def test_only_adapters_with_equal_samples_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for number in range(6):
        folder = write_adapter(tmp_path / f"number{number}", modules={"q_proj": (2048, 2048)})
        whole = bytearray((folder / WEIGHTS).read_bytes())
        whole[-1] = number // 2  # of two each the bytes are equal
        whole[len(whole) // 2 + 9] = number // 4
        (folder / WEIGHTS).write_bytes(whole)
        paths.append(str(folder))
    read = []
    chunks = weights_module._chunks

    def counted(file: io.BufferedReader, start: int, size: int) -> object:
        read.append(size)
        return chunks(file, start, size)

    monkeypatch.setattr(weights_module, "_chunks", counted)
    _, findings = judge(paths, {"HSW116"})
    assert [Path(found.where).name for found in findings] == ["number1", "number3", "number5"]
    read.clear()
    _, findings = judge(paths[::2], RULES)
    assert not [found for found in findings if found.code == "HSW116"]
    assert max(read) <= 4096
