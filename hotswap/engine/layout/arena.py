"""Arena: the tensors and scalings of an adapter as aligned views of one byte buffer per device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from hotswap.adapters.plan import ALIGNMENT
from hotswap.engine.layout.modes import in_inference_mode


class Region(NamedTuple):
    """Where a tensor lies in the buffer of its device, in bytes without what aligns the next one."""

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def strides(self) -> list[int]:
        """The strides of the tensor, in elements: those of a contiguous one."""
        return list(accumulate(self.shape[:0:-1], mul, initial=1))[: len(self.shape)][::-1]


@dataclass(frozen=True, slots=True)
class Layout:
    """The regions of some tensors, in their order; in a buffer they lie sorted by dtype.

    ``runs`` are the stretches of one dtype, each as (device, start, end, dtype) in bytes.
    """

    regions: tuple[Region, ...]
    sizes: dict[torch.device, int]
    runs: tuple[tuple[torch.device, int, int, torch.dtype], ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]] | None = None) -> Layout:
        """Lay out room for tensors like these, or for these in other shapes."""
        sizes: dict[torch.device, int] = {}
        runs: dict[tuple[torch.device, torch.dtype], tuple[int, int]] = {}
        regions: dict[int, Region] = {}
        dtypes = [tensor.dtype for tensor in tensors]
        words = {dtype: str(dtype) for dtype in set(dtypes)}
        for index in sorted(range(len(tensors)), key=lambda i: words[dtypes[i]]):
            device, dtype = tensors[index].device, dtypes[index]
            shape = tuple(tensors[index].shape if shapes is None else shapes[index])
            offset, size = sizes.get(device, 0), math.prod(shape) * dtype.itemsize
            regions[index] = Region(device, dtype, shape, offset, size)
            sizes[device] = end = offset + math.ceil(size / ALIGNMENT) * ALIGNMENT
            runs[device, dtype] = (runs.get((device, dtype), (offset, 0))[0], end)
        return cls(
            tuple(regions[index] for index in range(len(tensors))),
            sizes,
            tuple((device, *span, dtype) for (device, dtype), span in runs.items()),
        )

    @property
    def bytes(self) -> int:
        """The bytes of all buffers."""
        return sum(self.sizes.values())

    def new(self, device: torch.device | None = None, *, inference: bool = False) -> Arena:
        """Allocate zeroed buffers of this layout, on their devices or all on one.

        ``inference`` makes them inference tensors, as the parameters of a model that was loaded under
        ``torch.inference_mode`` are: only such ones can be their data.
        """
        with in_inference_mode(inference):
            buffers = {
                place: torch.zeros(
                    size,
                    dtype=torch.uint8,
                    device=device or place,
                    pin_memory=device is not None and device.type == "cpu" and place.type == "cuda",
                )
                for place, size in self.sizes.items()
            }
            return Arena(self, buffers, inference)


class Arena:
    """Buffers of a layout; ``views`` are the tensors in them, made when they are asked for."""

    def __init__(
        self, layout: Layout, buffers: dict[torch.device, Tensor], inference: bool = False
    ) -> None:
        self.layout = layout
        self.inference = inference
        self.buffers = buffers
        # what laid out its bytes last, and knows which of them are zeros
        self.copy_plan: object = None
        starts = {device: buffer.data_ptr() for device, buffer in buffers.items()}
        self.addresses = [
            starts[region.device] + region.offset if region.bytes else 0
            for region in layout.regions
        ]
        self._views: list[Tensor] | None = None

    @property
    def views(self) -> list[Tensor]:
        """The tensors, in the layout's order; each shares the storage of its buffer."""
        if self._views is None:
            with in_inference_mode(self.inference), torch.no_grad():
                typed = {
                    (device, dtype): self.buffers[device].view(dtype)
                    for device, _, _, dtype in self.layout.runs
                }
                self._views = [
                    typed[region.device, region.dtype].as_strided(
                        region.shape, region.strides, region.offset // region.dtype.itemsize
                    )
                    for region in self.layout.regions
                ]
        return self._views

    def copy(self, other: Arena) -> None:
        """Take over every byte of another arena of the same layout: one copy a device."""
        self.copy_plan = None
        with in_inference_mode(self.inference):
            for device, buffer in self.buffers.items():
                buffer.copy_(other.buffers[device])

    @property
    def bytes(self) -> int:
        """The bytes of all buffers."""
        return self.layout.bytes

    @torch.no_grad()
    def finite(self) -> bool:
        """Tell whether every floating value is finite, in one pass; a sum shows NaN and infinity."""
        for device, start, end, dtype in self.layout.runs:
            if dtype.is_floating_point:
                run = self.buffers[device][start:end].view(dtype)
                wide = torch.promote_types(dtype, torch.float32)
                if not math.isfinite(run.sum(dtype=wide).item()):
                    return all(  # finite values may add up to infinity
                        torch.isfinite(view).all().item()
                        for view in self.views
                        if view.is_floating_point()
                    )
        return True
