"""For every code of adapter files an adapter (or fleet) that has it, written into a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.adapter_files import (
    lora_tensors,
    raw_safetensors,
    safetensors_bytes,
    write_adapter,
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = lora_tensors({"q_proj": (32, 16)})


@dataclass(frozen=True)
class Sample:
    """What is written, below the folder that is given, and how it is checked."""

    write: Callable[[Path], object]
    options: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] | None = None


def filled(value: bytes, **changes: Any) -> Callable[[Path], None]:
    """An adapter whose last four bytes, of lora_B, are this value."""

    def write(root: Path) -> None:
        path = write_adapter(root / "a", **changes) / WEIGHTS
        path.write_bytes(path.read_bytes()[:-4] + value)

    return write


def adapter(**changes: Any) -> Callable[[Path], None]:
    return lambda root: filled(b"\0\0\x80\x3f", **changes)(root)


def damaged(damage: Callable[[Path], object], **changes: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        adapter(**changes)(root)
        damage(root / "a")

    return write


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _link(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.bin")
    (folder / WEIGHTS).symlink_to("../elsewhere.bin")


def _two(root: Path, first: dict[str, Any], second: dict[str, Any], names: str = "xy") -> None:
    for name, changes in zip(
        names.split() if " " in names else names, (first, second), strict=True
    ):
        adapter(**changes)(root / "of" / name)
        (root / "of" / name / "a").rename(root / name)
    shutil.rmtree(root / "of")


def _plan(**changes: Any) -> dict[str, Any]:
    return {"plan": changes}


SAMPLES: dict[str, Sample] = {
    "HSW001": Sample(lambda root: None),
    "HSW002": Sample(damaged(lambda a: (a / CONFIG).unlink())),
    "HSW003": Sample(damaged(lambda a: (a / CONFIG).write_text('{"r": 8, "r": 4}'))),
    "HSW004": Sample(damaged(lambda a: (a / WEIGHTS).unlink())),
    "HSW005": Sample(damaged(lambda a: (a / WEIGHTS).write_bytes(raw_safetensors(b"{}", 1)))),
    "HSW006": Sample(damaged(_pickle)),
    "HSW007": Sample(damaged(_pipe)),
    "HSW008": Sample(damaged(_link)),
    "HSW101": Sample(adapter(config={"peft_type": "LOHA"})),
    "HSW102": Sample(adapter(config={"init_lora_weights": "corda"})),
    "HSW103": Sample(adapter(tensors={"base_model.model.q_proj.lora_A.weight": ("F32", (8, 32))})),
    "HSW104": Sample(adapter(config={"r": 4})),
    "HSW105": Sample(adapter(), _plan(rank=4)),
    "HSW106": Sample(adapter(), _plan(modules={"k_proj": (32, 16)})),
    "HSW107": Sample(adapter(), _plan(modules={"q_proj": (64, 16)})),
    "HSW108": Sample(adapter(extra={"q_proj.lora_C.weight": ("F32", (1,))})),
    "HSW109": Sample(adapter(tensors=lora_tensors({"q_proj": (32, 16)}, dtype="I8"))),
    "HSW110": Sample(filled(b"\0\0\xc0\x7f"), {"weights": True}),
    "HSW111": Sample(adapter(config={"alpha_pattern": {"q_porj": 3}})),
    "HSW112": Sample(adapter(), base={"k_proj": (32, 16)}),
    "HSW113": Sample(
        lambda root: _two(
            root,
            {"config": {"base_model_name_or_path": "org/model"}},
            {"rank": 4, "config": {"base_model_name_or_path": "org/other"}},
        )
    ),
    "HSW114": Sample(lambda root: _two(root, {}, {"rank": 4}, "a ab")),
    "HSW115": Sample(
        adapter(tensors={**Q, "base_model.model.q_proj.lora_A.weight": ("BF16", (8, 32))})
    ),
    "HSW116": Sample(lambda root: _two(root, {}, {})),
    "HSW117": Sample(lambda root: write_adapter(root / "a"), {"weights": True}),
    "HSW119": Sample(adapter(config={"use_dorra": True})),
    "HSW120": Sample(adapter(), base={"model.q_proj": (32, 16)}),
    "HSW118": Sample(
        adapter(
            modules={"q_proj": (16, 16), "v_proj": (16, 16)}, config={"target_modules": ["v_proj"]}
        )
    ),
}
"""HSW009 is not here: it needs a file that changes while it is read."""


def paths(root: Path) -> list[str]:
    """The adapters of a sample; a folder that is not there if there are none."""
    found = sorted(p for p in root.iterdir() if p.is_dir()) if root.exists() else []
    return [str(path) for path in found] or [str(root / "none")]


def diffusers_file(path: Path, tensors: dict[str, Any], config: dict[str, Any] | None) -> Path:
    """Write a file as diffusers' save_lora_weights does, with the config in its metadata."""
    data = safetensors_bytes(tensors)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if config is not None:
        header["__metadata__"]["lora_adapter_metadata"] = json.dumps(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw_safetensors(json.dumps(header).encode(), len(data) - 8 - length))
    return path
