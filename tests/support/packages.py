"""A small exported model in every variant, each compiled once, and the fleet that it takes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import nn

import hotswap
from hotswap.bench.timing import default_backend
from tests.support.compiled import Mlp
from tests.support.models import fresh, seeded, write_fleet

needs_compiler = pytest.mark.skipif(
    default_backend() != "inductor",
    reason="AOTInductor needs a C++ compiler, and none was found",
)
TARGETS = ["up", "down"]
FLEET: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 4, "target_modules": TARGETS},
    "large": {"r": 4, "lora_alpha": 1, "target_modules": TARGETS},
    "some": {"r": 3, "lora_alpha": 6, "use_rslora": True, "target_modules": ["up"]},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "runtime folding": {
        "always_keep_tensor_constants": True,
        "aot_inductor.use_runtime_constant_folding": True,
    },
    "freezing": {"freezing": True},
}
"""What others compile packages with."""
INPUT = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def base() -> Any:
    return seeded(Mlp)


def prepared(adapter: Path) -> nn.Module:
    model: nn.Module = fresh(base(), adapter)
    hotswap.prepare(model, target_rank=4)
    return model


def exported(adapter: Path, path: Path, **options: Any) -> Path:
    """What hotswap exports, to be called as the contract calls models: by keywords."""
    return hotswap.export(prepared(adapter), (), path, kwargs={"x": INPUT}, **options)


class Packages:
    """The packages, made when they are first asked for; processes that have the folder share them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._made("fleet", lambda path: write_fleet(path, base(), FLEET))
        refused = {"larger": {"r": 5, "target_modules": ["up"]}}
        self._made("refused", lambda path: write_fleet(path, base(), refused))
        self.fleet = {name: folder / "fleet" / name for name in FLEET}
        self.larger = folder / "refused" / "larger"

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name
        with FileLock(self.folder / f"{name}.lock"):
            if not path.exists():
                with quickly():
                    make(path)
        return path

    @property
    def ours(self) -> Path:
        return self._made("ours.pt2", lambda path: exported(self.fleet["small"], path))

    @property
    def program(self) -> Path:
        return self._made(
            "program.pt2", lambda path: exported(self.fleet["small"], path, form="program")
        )

    def of(self, variant: str) -> Path:
        """What torch makes of a prepared model with these options, without hotswap."""
        if variant == "keep":
            source = self.ours
            return self._made("keep.pt2", lambda path: rewritten(source, path, note=lambda _: None))

        def make(path: Path) -> None:
            with torch.no_grad():
                program = torch.export.export(prepared(self.fleet["small"]), (), {"x": INPUT})
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(path), inductor_configs=dict(VARIANTS[variant])
                )

        return self._made(f"{variant.replace(' ', '-')}.pt2", make)


def quickly() -> Any:
    """What compiles the code around the kernels in less time."""
    return torch._inductor.config.patch("aot_inductor.compile_wrapper_opt_level", "O0")


def rewritten(
    source: Path,
    path: Path,
    *,
    note: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda told: told,
    code: Callable[[str], str] = lambda text: text,
) -> Path:
    """Copy a package with something else in hotswap's note, or in the code that lists the constants."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("_metadata.json"):
                told = json.loads(data)
                if "hotswap" in told:
                    changed = note(json.loads(told.pop("hotswap")))
                    told |= {} if changed is None else {"hotswap": json.dumps(changed)}
                data = json.dumps(told).encode()
            elif name.endswith("wrapper.cpp"):
                data = code(data.decode()).encode()
            new.writestr(name, data)
    return path
