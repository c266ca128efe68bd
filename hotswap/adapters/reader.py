"""SpecReader: reads one adapter after the other; texts that it has read before take less time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from typing import Generic, TypeVar

import xxhash

from hotswap.adapters.header import FileLayout
from hotswap.adapters.spec import AdapterSpec, describe
from hotswap.adapters.texts import Texts, open_texts

_T = TypeVar("_T")
_KEPT = 128
_LONGEST_KEPT = 1_000_000  # bytes of a header


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter whose texts were read; ``file`` is its open weights file, None on the hub.

    ``mark`` is a digest of the texts and of the size, equal for copies and b"" on the hub.
    """

    spec: AdapterSpec
    layout: FileLayout
    file: BufferedReader | None
    mark: bytes = b""


class SpecReader:
    """Reads adapters; what it made of equal texts or of an equal header before is used again."""

    def __init__(self) -> None:
        self._specs = _Kept[Opened]()
        self._layouts = _Kept[FileLayout]()

    @contextmanager
    def open(self, path: str) -> Iterator[Opened]:
        """Read an adapter's texts, and hold its weights file open.

        Raises UnreadableAdapterError (HSW0xx, HSW101), also at the end when the file has changed.
        """
        with open_texts(path) as texts:
            known = self._described(texts)
            yield replace(known, spec=replace(known.spec, path=path), file=texts.file)

    def spec(self, path: str) -> AdapterSpec:
        """Describe an adapter; raises UnreadableAdapterError with all HSW0xx and HSW101 findings."""
        with self.open(path) as opened:
            return opened.spec

    def _described(self, texts: Texts) -> Opened:
        digest = xxhash.xxh3_128(texts.header)
        digest.update(b"%d" % texts.size)
        header = digest.digest()
        digest.update(texts.config or b"")
        mark = digest.digest()
        keep = len(texts.header) <= _LONGEST_KEPT
        found = self._specs.get(mark)
        if found is None:
            layout = self._layouts.get(header) or texts.layout()
            found = Opened(describe(texts, layout), layout, None, mark if texts.file else b"")
            if keep:
                self._layouts.keep(header, layout)
        if keep and not found.spec.findings:  # they name the file
            self._specs.keep(mark, found)
        return found


class _Kept(Generic[_T]):
    """The values that were used last.

    The first time only a key is kept: a fleet in which no two are equal costs no memory.
    """

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, _T | None] = OrderedDict()
        self.get = self._values.get

    def keep(self, key: bytes, value: _T) -> None:
        """Remember a value as the last one used, and forget the one that was not used for longest."""
        self._values[key] = value if key in self._values else None
        self._values.move_to_end(key)
        if len(self._values) > _KEPT:
            self._values.popitem(last=False)
