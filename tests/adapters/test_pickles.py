"""Files of torch.save: read where that is allowed, as their copy in safetensors; hostile ones are refused."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.adapters.texts import open_texts
from hotswap.cli.main import main
from hotswap.cli.verify.command import _without_pickles
from hotswap.cli.verify.request import Request
from hotswap.errors import UnreadableAdapterError

TENSORS = {
    "base_model.model.q_proj.lora_A.weight": torch.ones(2, 8),
    "base_model.model.q_proj.lora_B.weight": torch.ones(8, 2),
}
CONFIG = '{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}'


def folder_with(folder: Path, content: Any) -> Path:
    (folder / "adapter_config.json").write_text(CONFIG)
    torch.save(content, folder / "adapter_model.bin")
    return folder


def only(path: Path, **options: Any) -> str:
    (found,) = hotswap.check_adapters(path, **options)
    assert found.code == "HSW006"
    return str(found)


def test_a_pickle_is_read_only_where_that_is_allowed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, TENSORS)
    for path in (folder, folder / "adapter_model.bin"):
        assert "--allow-pickle" in only(path)
        assert hotswap.check_adapters(path, allow_pickle=True, weights=True) == []
        (module,) = hotswap.plan([path], allow_pickle=True).modules.values()
        assert module.rank == 2
        with pytest.raises(UnreadableAdapterError, match="allow_pickle=True"):
            hotswap.plan([path])


def test_the_commands_read_a_pickle_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    words = [str(folder_with(folder, TENSORS))]
    assert main(["check", *words]) == main(["plan", *words]) == 1
    assert main(["check", *words, "--allow-pickle", "-j", "2"]) == 0
    assert main(["plan", *words, "--allow-pickle"]) == 0
    assert "fits" in capsys.readouterr().out
    (tmp_path / "work").mkdir()
    request = Request(adapters=tuple(words), allow_pickle=True)
    rewritten, notes = _without_pickles(request, tmp_path / "work")
    assert [Path(path).name for path in rewritten.adapters] == ["own"]
    assert hotswap.check_adapters(rewritten.adapters) == []
    assert notes == ["adapters read from pickles, by torch.load(weights_only=True): 1"]


def test_values_of_a_pickle_are_checked(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {**TENSORS, next(iter(TENSORS)): torch.full((2, 8), torch.nan)})
    found = hotswap.check_adapters(folder, allow_pickle=True, weights=True)
    assert [finding.code for finding in found] == ["HSW110"]


def test_tied_weights_and_parameters_of_a_pickle_are_tensors(tmp_path: Path) -> None:
    table = torch.nn.Parameter(torch.ones(2, 8, dtype=torch.bfloat16))
    tensors = dict.fromkeys(TENSORS, table) | {"base_model.model.q_proj.lora_B.weight": table.T}
    with open_texts(str(folder_with(tmp_path, tensors)), allow_pickle=True) as texts:
        layout = texts.layout()
    assert {(i.dtype, i.shape) for i in layout.tensors.values()} == {
        ("BF16", (2, 8)),
        ("BF16", (8, 2)),
    }


def test_a_file_for_a_pipeline_may_be_a_pickle(tmp_path: Path) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    for path in (tmp_path, tmp_path / "pytorch_lora_weights.bin"):
        assert "pickle" in only(path)
        assert hotswap.check_adapters(path, allow_pickle=True) == []


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, (str(self.trace),)


def zipped(pickled: bytes, *names: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name in names:
            archive.writestr(name, bytes(100_000))
    return buffer.getvalue()


def expanded() -> torch.Tensor:
    return torch.ones(1).expand(1_000_000, 1_000_000)  # 4 TB, of which 4 bytes are stored


REFUSED: dict[str, tuple[Any, str]] = {
    "a whole model": (torch.nn.Linear(2, 2), "is a whole model: it names torch.nn.modules.linear"),
    "a checkpoint": ({"state_dict": TENSORS, "epoch": 3}, "a dict named 'state_dict'"),
    "a list": ([torch.ones(2)], "holds a list, expected a dict of tensors"),
    "an array of numpy": ({"a": torch.ones(2).numpy()}, "it names numpy"),
    "a tensor without its values": ({"lora": expanded()}, "is larger than what is stored"),
    "no archive": (b"\x80\x02}q\x00.", "none that torch.save has written since torch 1.6"),
    "another pickle": (pickle.dumps(TENSORS, protocol=4), "none that torch.save has written"),
    "an archive of something": (zipped(b"x"), "none that torch.save has written"),
    "a program": (zipped(b".", "archive/constants.pkl"), "is a TorchScript program"),
    "a bomb": (zipped(b".", "archive/data/0", compression=zipfile.ZIP_DEFLATED), "more bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_state_dict_is_refused_by_what_it_is(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    folder = folder_with(tmp_path, TENSORS)
    if isinstance(content, bytes):
        (folder / "adapter_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "adapter_model.bin")
    assert words in only(folder, allow_pickle=True)


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = folder_with(tmp_path, {**TENSORS, "more": Hostile(trace)})
    assert "posix.mkdir" in only(folder, allow_pickle=True) or os.name == "nt"
    assert not trace.exists()
    with pytest.raises(Exception, match=r"weights_only"):  # and torch itself would refuse it
        torch.load(folder / "adapter_model.bin", weights_only=True)
    torch.load(folder / "adapter_model.bin", weights_only=False)
    assert trace.exists()  # the control: it is hostile
