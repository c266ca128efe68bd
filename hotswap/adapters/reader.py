"""SpecReader: reads one adapter after the other; texts that it has read before take less time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from typing import Any

import xxhash

from hotswap.adapters.formats import told_by_texts
from hotswap.adapters.header import FileLayout
from hotswap.adapters.spec import AdapterSpec, describe
from hotswap.adapters.texts import Family, Texts, open_texts

_KEPT = 256
_LONGEST_KEPT = 1_000_000  # bytes of a header


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter whose texts were read; ``file`` is its open weights file, None on the hub.

    ``mark`` is a digest of the texts and of the size, equal for copies and b"" on the hub. They are the
    ``whole`` of what the spec is made from, unless values are, too.
    """

    spec: AdapterSpec
    layout: FileLayout
    file: BufferedReader | None
    mark: bytes = b""
    whole: bool = True


class SpecReader:
    """Reads adapters; what it made of equal texts or of an equal header before is used again.

    ``family`` says which pipeline files are for, where their names alone do not; ``allow_pickle``
    lets files of torch.save be read.
    """

    def __init__(self, family: Family | None = None, *, allow_pickle: bool = False) -> None:
        self._options: dict[str, Any] = {"family": family, "allow_pickle": allow_pickle}
        self._kept: OrderedDict[bytes, Any] = OrderedDict()  # Opened or FileLayout, by a digest

    @contextmanager
    def open(self, path: str) -> Iterator[Opened]:
        """Read an adapter's texts, and hold its weights file open.

        Raises UnreadableAdapterError (HSW0xx, HSW101), also at the end when the file has changed.
        """
        with open_texts(path, **self._options) as texts:
            known = self._described(texts)
            spec = known.spec if known.spec.path == path else replace(known.spec, path=path)
            yield Opened(spec, known.layout, texts.file, known.mark, known.whole)

    def spec(self, path: str) -> AdapterSpec:
        """Describe an adapter; raises UnreadableAdapterError with all HSW0xx and HSW101 findings."""
        with self.open(path) as opened:
            return opened.spec

    def _described(self, texts: Texts) -> Opened:
        digest = xxhash.xxh3_128(texts.header)
        digest.update(b"%d" % texts.size)
        header = digest.digest()
        digest.update(
            b"config" + (texts.config or b"")
        )  # else the mark of a file alone is the same
        mark = digest.digest()
        found: Opened | None = self._kept.get(mark)
        if found is None:
            layout = self._kept.get(header) or texts.layout()
            whole = told_by_texts(texts, layout)
            alone = texts.file is None or texts.passing  # no bytes to compare with others'
            found = Opened(describe(texts, layout), layout, None, b"" if alone else mark, whole)
            self._keep(texts, header, layout)
        if found.whole and not found.spec.findings:  # they name the file
            self._keep(texts, mark, found)
        return found

    def _keep(self, texts: Texts, key: bytes, value: Opened | FileLayout) -> None:
        """Remember a value as the last one used, and forget the one that was not used for longest.

        The first time only its key is kept: a fleet in which no two are equal costs no memory.
        """
        if len(texts.header) <= _LONGEST_KEPT:
            self._kept[key] = value if key in self._kept else None
            self._kept.move_to_end(key)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
