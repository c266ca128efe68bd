"""Weights that torch.save wrote: looked at without running them, then written again as safetensors."""

from __future__ import annotations

import os
import pickletools
import re
import shutil
import zipfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import (
    DIFFUSERS_PICKLE,
    DIFFUSERS_WEIGHTS,
    PICKLE,
    WEIGHTS,
    open_regular,
    unchanged,
    unreadable,
)
from hotswap.errors import UnreadableAdapterError

_NAMES = {PICKLE: WEIGHTS, DIFFUSERS_PICKLE: DIFFUSERS_WEIGHTS}
_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_OF_TENSORS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)"
    r"|torch (\w+Storage|b?float\w+|u?int\d+)|torch\.storage (Untyped|Typed)Storage"
)
"""What a state dict of dense tensors names; a pickle may name any function."""
_LONGEST = 64_000_000  # bytes of the pickle itself, which lists the tensors
_SAVE_AGAIN = "load it where you trust it, and save its state dict as safetensors"


def torch_file(path: Path) -> Path | None:
    """The file of torch.save that an adapter is, or that its folder has instead of safetensors."""
    if path.suffix in _SUFFIXES and path.is_file():
        return path
    if any(os.path.exists(os.path.join(path, name)) for name in _NAMES.values()):
        return None  # as for most
    return next((path / name for name in _NAMES if (path / name).is_file()), None)


def rewritten(source: Path, folder: Path) -> Path:
    """Write an adapter's pickle as safetensors into an empty folder, with its config; return the adapter.

    The pickle is loaded by ``torch.load(weights_only=True)``, which calls nothing that it names, after a
    look at what it names and how large it is. Raises UnreadableAdapterError (HSW006/007/009).
    """
    name = _NAMES.get(source.name, f"{source.stem}.safetensors")
    config = source.parent / CONFIG
    if config.exists():
        name = WEIGHTS
        with open_regular(config) as file, (folder / CONFIG).open("wb") as copy:
            shutil.copyfileobj(file, copy)
    try:
        with open_regular(source) as file:
            before = os.fstat(file.fileno())
            _look(file, before.st_size)
            tensors = _tensors(file, before.st_size)
            unchanged(file, before)
    except OSError as error:
        raise _refused(source, f"cannot be read: {error.strerror or error}") from error
    from safetensors.torch import save_file

    save_file(tensors, folder / name)
    return folder if config.exists() else folder / name


def _look(file: BufferedReader, size: int) -> None:
    """Raise UnreadableAdapterError unless it is a zip of torch, as large as it says, of tensors alone."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise _refused(file.name, "is a TorchScript program, no state dict")
            if sum(entry.file_size for entry in entries) > size:
                raise _refused(file.name, "has more bytes when it is unpacked than as a file")
            (listing,) = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if listing.file_size > _LONGEST:
                raise _refused(file.name, f"its pickle has {listing.file_size} bytes, too many")
            strange = next(_strangers(archive.read(listing)), None)
    except UnreadableAdapterError:
        raise
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        text = "is a pickle, but none that torch.save has written since torch 1.6"
        raise _refused(file.name, text) from error
    if strange is not None:
        what = (
            "a whole model"
            if re.search(r"\bmodel|Model|torch\.nn\.mod", strange)
            else "no state dict"
        )
        text = f"is {what}: it names {strange}, expected tensors alone"
        raise _refused(file.name, text)


def _strangers(pickled: bytes) -> Iterator[str]:
    """The functions and classes that a pickle names beside those of tensors; raises ValueError."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not _OF_TENSORS.fullmatch(str(argument)):
            yield ascii(str(argument).replace(" ", "."))[1:-1][:100]
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            yield f"something by the opcode {opcode.name}"


def _tensors(file: BufferedReader, size: int) -> dict[str, Any]:
    """The state dict; raises UnreadableAdapterError for anything else, or more than the file holds."""
    import torch

    file.seek(0)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the unpickler, on files of strangers
        first = (str(error).splitlines() or [""])[0].rstrip(": ")[:200] or type(error).__name__
        raise _refused(file.name, f"torch.load(weights_only=True) refuses it: {first}") from error
    if not isinstance(found, dict):
        raise _refused(file.name, f"holds a {type(found).__name__}, expected a dict of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            text = (
                f"holds a {type(value).__name__} named {ascii(name)[:60]}, expected tensors alone"
            )
            raise _refused(file.name, text)
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise _refused(file.name, f"{ascii(name)[:60]} is larger than what is stored of it")
    if sum(value.nbytes for value in found.values()) > 2 * size:  # some weights are tied
        raise _refused(file.name, "its tensors are larger than the file")
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def _refused(where: str | Path, text: str) -> UnreadableAdapterError:
    return unreadable(where, "HSW006", text, _SAVE_AGAIN)
