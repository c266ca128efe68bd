"""The values of a weights file, streamed: a digest of its content, and numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader

import xxhash

from hotswap.adapters.files import changed
from hotswap.adapters.header import BITS, FileLayout, TensorInfo
from hotswap.adapters.names import canonical
from hotswap.findings import Finding

CHUNK = 8 << 20
"""Bytes that are held at once; a multiple of every element's size."""
_SAMPLES, _SAMPLE = 8, 4096
_EXPONENTS = {
    "F8_E4M3": 0x7F,  # which has NaN and no infinity
    "F8_E5M2": 0x7C,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F32": 0x7F80_0000,
    "F64": 0x7FF0_0000_0000_0000,
}


def content_digest(file: BufferedReader, layout: FileLayout) -> str:
    """Digest names, dtypes, shapes and bytes in the order of the data, so that caches can key on it."""
    ordered = sorted(layout.tensors.items(), key=lambda item: (item[1].start, item[0]))
    described = [(canonical(name), info.dtype, info.shape) for name, info in ordered]
    digest = xxhash.xxh3_128(repr(described).encode("utf-8", "surrogatepass"))
    for chunk in _chunks(file, layout.start, layout.size):
        digest.update(chunk)
    return digest.hexdigest()


def sampled_digest(file: BufferedReader, layout: FileLayout) -> str:
    """Digest some blocks of the data, evenly apart: enough to tell adapters that were trained apart."""
    digest = xxhash.xxh3_128(b"%d" % layout.size)
    for number in range(_SAMPLES):
        at = max(layout.size - _SAMPLE, 0) * number // (_SAMPLES - 1)
        for chunk in _chunks(file, layout.start + at, min(_SAMPLE, layout.size)):
            digest.update(chunk)
    return digest.hexdigest()


def value_findings(where: str, file: BufferedReader, layout: FileLayout) -> list[Finding]:
    """Read every tensor of floating numbers: NaN and infinity (HSW110), an adapter of zeros (HSW117).

    One chunk is in memory at a time, whatever the size of a tensor.
    """
    found = []
    effect = False
    for name, info in layout.tensors.items():
        if info.dtype not in _EXPONENTS:
            continue
        finite, zero = _values(file, layout, info)
        if not finite:
            text, remedy = "holds NaN or infinity", "train or export the adapter again"
            found.append(Finding(f"{where}::{canonical(name)}", "HSW110", text, remedy))
        effect |= not zero and ("lora_B" in name or "lora_embedding_B" in name)
    if not effect and not found and any("lora_" in name for name in layout.tensors):
        text = "every B is zero, so the adapter does nothing"
        remedy = "check that it was saved after training"
        found.append(Finding(where, "HSW117", text, remedy))
    return found


def _values(file: BufferedReader, layout: FileLayout, info: TensorInfo) -> tuple[bool, bool]:
    """Whether all values of a tensor are finite, and whether all are zero (also -0.0)."""
    import numpy as np

    bits, exponent = BITS[info.dtype], _EXPONENTS[info.dtype]
    zero, magnitude = True, (1 << (bits - 1)) - 1
    for chunk in _chunks(file, layout.start + info.start, info.end - info.start):
        words = np.frombuffer(chunk, dtype=f"<u{bits // 8}")
        if bool(((words & exponent) == exponent).any()):
            return False, False
        zero = zero and not bool((words & magnitude).any())
    return True, zero


def _chunks(file: BufferedReader, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size:
        chunk = file.read(min(size, CHUNK))
        if len(chunk) != min(size, CHUNK):
            raise changed(file.name)
        yield chunk
        size -= len(chunk)
