"""Package: an exported model whose adapters are swapped without the model, PEFT or transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hotswap.adapters.plan import SwapPlan
from hotswap.compiler.packages import PackageFile
from hotswap.engine.bank.bank import AdapterBank, Using
from hotswap.engine.incoming.source import Adapter, Config
from hotswap.engine.layout.adapter_slots import AdapterSlots
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import register
from hotswap.engine.layout.scalings import Scalings
from hotswap.engine.layout.states import States
from hotswap.engine.manifest import Manifest
from hotswap.engine.scale import set_scale
from hotswap.engine.swap import SwapReport, active, swap
from hotswap.errors import HotswapError


class PackagedLayer:
    """What a package has of a LoRA layer: its scaling."""

    def __init__(self, adapter_name: str, view: Tensor) -> None:
        self.scaling = Scalings({}, dtype=view.dtype, device=view.device)
        self.scaling.put(adapter_name, view)
        self.scaling.states[adapter_name] = None


class Package(nn.Module):
    """A model that ``hotswap.export`` wrote; call it as the model was called.

    Its adapter is one buffer, of which the package reads views: a swap is one copy into it. It starts with
    the base model in place. ``hotswap.swap``, ``set_scale``, ``active`` and ``AdapterBank`` take it too.
    Forwards and swaps of several threads belong inside of ``using``, which lets nobody else swap.
    """

    def __init__(self, path: str | Path) -> None:
        """Raise PackageError for a file that cannot be read, or whose adapters cannot be swapped."""
        super().__init__()
        file = PackageFile.read(path)
        manifest = Manifest.read(file)
        device = file.constants[manifest.tensors[0].constant].device
        run = file.load()
        arena = manifest.layout(torch.device(device)).new()
        constants = {
            one.constant: view for one, view in zip(manifest.tensors, arena.views, strict=True)
        }
        if isinstance(run, nn.Module):
            _replace(run, constants)
        else:
            # not user_managed, each view would be read to the end of the storage that all of them share
            run.load_constants(constants, check_full_update=False, user_managed=True)
        self._run = run
        slots = [one.slot(constants[one.constant]) for one in manifest.slots]
        name = manifest.adapter_name
        layers: Any = {
            one.module: PackagedLayer(name, constants[one.constant]) for one in manifest.scalings
        }
        by_layer = {module: [s for s in slots if s.module == module] for module in layers}
        shared = States.share([layer.scaling.states for layer in layers.values()], name)
        shared.owner = placement = Placement(
            AdapterSlots(name, layers, by_layer, []),
            slots,
            arena.layout,
            arena,
            config=None,
            shared=shared,
            envelope=manifest.plan,
        )
        placement.label = None
        self._placement = placement  # the arena too: the package has its addresses only
        register(self, placement)
        self._bank = AdapterBank(self, adapter_name=name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, without gradients."""
        with torch.no_grad():
            return self._run(*args, **kwargs)

    @property
    def plan(self) -> SwapPlan:
        """What fits."""
        return self._placement.envelope

    @property
    def active(self) -> str | None:
        """The adapter in place; None is the base model."""
        return active(self)

    def swap(
        self,
        adapter: Adapter | None,
        *,
        config: Config | None = None,
        timeout: float | None = None,
    ) -> SwapReport:
        """Replace the adapter in place, all or nothing, as ``hotswap.swap`` does.

        ``config`` of a state dict may be the fields of a LoraConfig. Raises what ``hotswap.swap`` raises.
        """
        return swap(self, adapter, config=config, timeout=timeout)

    def add(self, name: str, adapter: Adapter | None, *, config: Config | None = None) -> str:
        """Stage an adapter for ``using``, as ``AdapterBank.add`` does; return its digest."""
        return self._bank.add(name, adapter, config=config)

    def using(self, name: str, *, timeout: float | None = None) -> Using:
        """Put an adapter that was added in place, and keep others from swapping until the scope ends."""
        return self._bank.using(name, timeout=timeout)

    def set_scale(self, scale: float) -> None:
        """Multiply the adapter's own alpha / rank by ``scale``, in place, until the next swap."""
        set_scale(self, scale)

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise HotswapError(
            "a package stays on its device and in its dtype; export the model again for another one"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise HotswapError("a package cannot be copied; load its file once more: Package(path)")


def _replace(program: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Let a program's parameters and buffers be these tensors, in place."""
    for name, tensor in tensors.items():
        owner_name, _, key = name.rpartition(".")
        owner = program.get_submodule(owner_name)
        if key in owner._parameters:
            owner._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[key] = tensor
