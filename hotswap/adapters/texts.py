"""The texts of one adapter, config and header, in a folder, in a file or on the hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from hotswap.adapters import hub, pickles
from hotswap.adapters.config import CONFIG, config_text, lora_config
from hotswap.adapters.files import (
    ALLOW_PICKLE,
    DIFFUSERS_WEIGHTS,
    PICKLED,
    WEIGHTS,
    changed,
    open_regular,
    open_weights,
    read_raw_header,
    refuse_others,
    unchanged,
    unreadable,
)
from hotswap.adapters.header import FileLayout, layout_of
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding, has_code


class Family(NamedTuple):
    """Which pipeline of diffusers a file is for: its class, and how many layers a block of its UNet has."""

    pipeline: str
    layers: int = 2


@dataclass(frozen=True, slots=True)
class Texts:
    """What the files of an adapter say, as it stands there.

    ``config`` is None where the weights stand alone. ``size`` counts the bytes of the data behind the
    header; ``file`` is the open weights file, None on the hub. ``family`` is None where it is to be found
    from the names. A ``passing`` file is a copy that is gone when it is closed.
    """

    path: str
    weights: str
    config: bytes | None
    header: bytes
    size: int
    file: BufferedReader | None = None
    family: Family | None = None
    passing: bool = False

    def layout(self) -> FileLayout:
        """Parse the header; raises UnreadableAdapterError (HSW005)."""
        return layout_of(self.weights, self.header, self.size)

    def values(self, layout: FileLayout, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of some tensors; from the hub the whole file is fetched for that."""
        name = self.weights if self.file is not None else str(hub.fetched(self.path))
        found = {}
        with open(name, "rb") as file:
            for tensor in names:
                info = layout.tensors[tensor]
                file.seek(layout.start + info.start)
                found[tensor] = file.read(info.end - info.start)
                if len(found[tensor]) != info.end - info.start:
                    raise changed(name)
        return found


@contextmanager
def open_texts(
    path: str,
    *,
    config: bytes | None = None,
    family: Family | None = None,
    allow_pickle: bool = False,
) -> Iterator[Texts]:
    """Read an adapter's texts, and hold its weights file open; ``config`` stands in for its own.

    With ``allow_pickle`` a file of torch.save is read too, through a copy in safetensors. Raises
    UnreadableAdapterError, also at the end when the file has changed; where the texts are not as they
    should be it has the findings of the config too.
    """
    options: dict[str, Any] = {"config": config, "family": family, "allow_pickle": allow_pickle}
    if hub.looks_like_id(path):
        found = None if hub.cache_only() else _of_hub(path, allow_pickle)
        if found is not None:
            yield Texts(path, path, *found, family=family)
            return
        with open_texts(str(hub.fetched(path, allow_pickle=allow_pickle)), **options) as texts:
            yield replace(texts, path=path)
        return
    location = Path(path)
    pickled = pickles.torch_file(location)
    if pickled is not None:
        with open_regular(pickled) as file:
            refuse_others(pickled, file.read(8), pickles=False)
    if pickled is not None and allow_pickle:
        with tempfile.TemporaryDirectory(prefix="hotswap-") as folder:
            copy = str(pickles.rewritten(pickled, Path(folder)))
            with open_texts(copy, **options) as texts:
                yield replace(texts, path=path, passing=True)
        return
    if pickled is not None:
        raise unreadable(pickled, "HSW006", PICKLED, ALLOW_PICKLE)
    weights = weights_of(location)
    if config is None and weights is None:
        config = config_text(folder_of(location))
    try:
        with open_weights(weights or location) as file:
            before = os.fstat(file.fileno())
            header = read_raw_header(file)
            size = before.st_size - 8 - len(header)
            yield Texts(path, file.name, config, header, size, file, family)
            unchanged(file, before)
    except UnreadableAdapterError as error:
        findings = _config_findings(location, config)
        if not has_code(findings, "HSW101"):  # of another kind than LoRA, only that
            findings += error.findings
        raise UnreadableAdapterError(tuple(dict.fromkeys(findings))) from error


def _of_hub(path: str, allow_pickle: bool) -> tuple[bytes | None, bytes, int] | None:
    """The texts of an adapter on the hub; None for a pickle that is allowed, which is fetched instead."""
    try:
        return hub.read_texts(path)
    except UnreadableAdapterError as error:
        if not (allow_pickle and has_code(error.findings, "HSW006")):
            raise
    return None


def weights_of(path: Path) -> Path | None:
    """The weights of an adapter without a config, given themselves or their folder; None for PEFT's."""
    folder = path if os.path.isdir(path) else path.parent
    if os.path.exists(os.path.join(folder, CONFIG)):  # as most have
        return None
    file = path / DIFFUSERS_WEIGHTS if folder is path else path
    alone = file.suffix == ".safetensors" and file.name != WEIGHTS and file.exists()
    return file if alone else None


def folder_of(path: Path) -> Path:
    """The folder of an adapter, given itself or its weights file."""
    return path.parent if path.suffix == ".safetensors" and not path.is_dir() else path


def _config_findings(path: Path, config: bytes | None) -> tuple[Finding, ...]:
    try:
        if config is not None:
            lora_config(folder_of(path) / CONFIG, config)
    except UnreadableAdapterError as error:
        return error.findings
    return ()
