"""FileReader: the values of a safetensors file, read to where they are to be."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Mapping
from io import BufferedReader
from itertools import accumulate
from typing import NoReturn

import torch
from torch import Tensor

from hotswap.adapters.files import changed, read_raw_header, unchanged
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.plan import ALIGNMENT
from hotswap.engine.layout.adapter_slots import DTYPES
from hotswap.engine.layout.modes import in_inference_mode
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

_TORCH = {word: dtype for dtype, word in DTYPES.items()}
_kept = threading.local()


class FileReader:
    """Where the tensors of a file are read to: given tensors, or else a buffer of this thread."""

    def __init__(
        self, header: bytes, tensors: Mapping[str, TensorInfo], direct: Mapping[str, Tensor]
    ) -> None:
        self._header = header
        self.tensors: dict[str, Tensor] = {}
        self._views: list[
            tuple[int | None, memoryview]
        ] = []  # to be read after a jump to, or at once
        others = {name: info for name, info in tensors.items() if name not in direct}
        room = [math.ceil((info.end - info.start) / ALIGNMENT) for info in others.values()]
        ends = [ALIGNMENT * end for end in accumulate(room)]
        buffer = _buffer(ends[-1] if ends else 0)
        self._buffer = weakref.ref(buffer)
        starts = dict(zip(others, [0, *ends], strict=False))
        at = 0
        for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
            if name in direct:
                tensor = direct[name]
            else:
                tensor = _view(buffer[starts[name] :][: info.end - info.start], info)
            self.tensors[name] = tensor
            if tensor.numel():
                jump = None if info.start == at else 8 + len(header) + info.start
                self._views.append((jump, tensor.reshape(-1).view(torch.uint8).numpy().data))
            at = info.end

    def serves(self, header: bytes) -> bool:
        """Whether it reads files with this header, and its buffer is this thread's still."""
        buffer = self._buffer()
        return self._header == header and buffer is not None and buffer is _thread_buffer()

    def read(self, file: BufferedReader, described: os.stat_result) -> None:
        """Read the data of an open file; raises UnreadableAdapterError if it is not as it was described.

        A file that is written meanwhile would be a mixture; ``described`` is what it was when its header
        was read.
        """
        unchanged(file, described)
        if read_raw_header(file) != self._header:
            raise changed(file.name)
        try:
            for jump, view in self._views:
                if jump is not None:
                    file.seek(jump)
                if file.readinto(view) != len(view):
                    _unreadable(file.name, "the file has shrunk while it was read")
        except OSError as error:
            _unreadable(file.name, f"cannot be read: {error.strerror or error}")
        unchanged(file, described)


def _unreadable(name: str, text: str) -> NoReturn:
    remedy = "check the file and its permissions, and load it again"
    raise UnreadableAdapterError([Finding(name, "HSW005", text, remedy)])


def _buffer(size: int) -> Tensor:
    """A buffer of bytes that the next read of this thread writes again: new pages cost more than the read."""
    kept = _thread_buffer()
    if kept is None or kept.numel() < size:
        with in_inference_mode(False):
            kept = _kept.buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    return kept


def _thread_buffer() -> Tensor | None:
    return getattr(_kept, "buffer", None)


def _view(piece: Tensor, info: TensorInfo) -> Tensor:
    dtype = dtype_of(info)
    return piece if dtype is None else piece.view(dtype).view(info.shape)


def dtype_of(info: TensorInfo) -> torch.dtype | None:
    """The dtype of a tensor; None for one that torch lacks, of which the spec has a finding."""
    return _TORCH.get(info.dtype)
