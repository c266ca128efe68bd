"""PackageFile: what the file of an exported model says; it is read, no code of it is loaded or run."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from hotswap.compiler import private
from hotswap.errors import PackageError
from hotswap.findings import Finding

Form = Literal["aotinductor", "program"]
NOTE = "hotswap"
"""Under this name stands what hotswap wrote into a package."""
_NOTE_FILE = f"{NOTE}.json"
_INFO = re.compile(r"constants_info_\[(\d+)\]\.(\w+) = (.*);")
_TEXTS = re.compile(
    r"data/aotinductor/model/.*(wrapper\.cpp|_metadata\.json)"
    r"|data/(weights|constants)/.*_config\.json|extra/" + re.escape(_NOTE_FILE)
)
_AGAIN = "write it again with hotswap.export(model, args, path)"


class Constant(NamedTuple):
    """A tensor that a package reads when it runs, and that may be exchanged."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: str


@dataclass(frozen=True, slots=True)
class PackageFile:
    """The constants of a package by name, and what hotswap wrote into it; None: it was not hotswap."""

    path: Path
    form: Form
    constants: dict[str, Constant]
    note: str | None

    @classmethod
    def read(cls, path: str | Path) -> PackageFile:
        """Read what ``aoti_compile_and_package`` or ``torch.export.save`` wrote; raises PackageError."""
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                files = {name.partition("/")[2]: archive.read(name) for name in _told(archive)}
            compiled = any(name.endswith(".cpp") for name in files)
            constants, note = _compiled(files) if compiled else _program(files)
        except FileNotFoundError as error:
            raise _unreadable(path, "no such file", "check the path") from error
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, f"is no package that can be read: {error}", _AGAIN) from error
        if not constants:
            text = "shows no constants of an AOTInductor model named 'model' or of a program"
            raise _unreadable(path, text, _AGAIN)
        return cls(path, "aotinductor" if compiled else "program", constants, note)

    def load(self) -> Any:
        """Load it: an ``AOTICompiledModel``, or the module of a program. Raises PackageError."""
        try:
            if self.form == "aotinductor":
                _, load = private.package_functions()
                return load(str(self.path))
            return torch.export.load(self.path).module()
        except (RuntimeError, OSError, ValueError) as error:
            text = f"cannot be loaded: {(str(error).splitlines() or [''])[0][:200]}"
            remedy = "load it on a machine like the one it was exported on"
            raise _unreadable(self.path, text, remedy) from error


def save_package(program: Any, path: Path, form: Form, note: str, options: dict[str, Any]) -> None:
    """Write an exported program with a note in it; with AOTInductor it is compiled first."""
    if form == "program":
        torch.export.save(program, path, extra_files={_NOTE_FILE: note})
    else:
        told = {**options, "aot_inductor.metadata": {NOTE: note}}
        write, _ = private.package_functions()
        write(program, package_path=str(path), inductor_configs=told)


def _told(archive: zipfile.ZipFile) -> list[str]:
    """The files that say what is in a package, none of its weights or binaries."""
    return [name for name in archive.namelist() if _TEXTS.fullmatch(name.partition("/")[2])]


def _compiled(files: Mapping[str, bytes]) -> tuple[dict[str, Constant], str | None]:
    constants: dict[str, Constant] = {}
    note = None
    for name, text in files.items():
        if name.endswith(".cpp"):
            constants |= _of_code(text.decode())
        elif name.endswith("_metadata.json"):
            note = json.loads(text).get(NOTE, note)
    return constants, note


def _program(files: Mapping[str, bytes]) -> tuple[dict[str, Constant], str | None]:
    constants: dict[str, Constant] = {}
    for name, text in files.items():
        if name.endswith("_config.json"):
            constants |= _of_config(json.loads(text))
    note = files.get(f"extra/{_NOTE_FILE}")
    return constants, note.decode() if note is not None else None


def _of_code(text: str) -> dict[str, Constant]:
    """The constants that AOTInductor's wrapper declares: torch/_inductor/codegen/cpp_wrapper_cpu.py."""
    told: dict[str, dict[str, str]] = {}
    for index, field, value in _INFO.findall(text):
        told.setdefault(index, {})[field] = value
    found = {}
    for one in told.values():
        dtype = one["dtype"].rpartition("torch_dtype_")[2]
        device = one["device_type"].rpartition("device_type_")[2]
        name = one["original_fqn"].strip('"') or one["name"].strip('"')
        found[name] = Constant(dtype, _sizes(one["shape"]), _sizes(one["stride"]), device)
    return found


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", text))


def _of_config(told: dict[str, Any]) -> dict[str, Constant]:
    """The weights and constants that a saved program lists: torch/export/pt2_archive/_package.py."""
    found = {}
    for name, entry in told["config"].items():
        meta = entry["tensor_meta"]
        if meta is not None:
            shape, stride = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
            dtype = str(private.dtype_of_program(meta["dtype"])).removeprefix("torch.")
            found[name] = Constant(dtype, tuple(shape), tuple(stride), meta["device"]["type"])
    return found


def _unreadable(path: Path, text: str, remedy: str) -> PackageError:
    return PackageError([Finding(str(path), "HSW311", text, remedy)])
