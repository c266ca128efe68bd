"""Every use of a private name of torch.distributed, one function each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from hotswap.compiler.private import _observing


def local_of(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this rank holds; of any other tensor, the tensor itself.

    ``DTensor.to_local()`` says the same, for fifty times as long.
    """
    return getattr(tensor, "_local_tensor", tensor)


def whole_of(tensor: Any) -> Any:
    """All of a DTensor, for which every rank has to take part; anything else as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def over_ranks() -> bool:
    """Whether this process is one of several ranks."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@_observing("which part of a tensor is on this rank")
def chunk_of(tensor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the local part of a DTensor begins in the whole, and its shape."""
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.offsets), tuple(chunk.sizes)


def fully_sharded(modules: Iterable[nn.Module]) -> set[tuple[int, str]]:
    """The parameters that FSDP exchanges: the id of the dict of a module that holds one, and its key.

    Those of a group that cannot be looked into, or that is around the modules given, are all there are
    in the modules that FSDP has marked.
    """
    found: set[tuple[int, str]] = set()
    known: set[int] = set()
    marked = []
    for module in modules:
        if vars(module).get("_is_fsdp_managed_module"):
            marked.append(module)
        if (infos := _managed_by(module)) is not None:
            found.update((id(holder._parameters), key) for holder, key in infos)
            known.update(map(id, module.modules()))
    for module in marked:
        if id(module) not in known:
            found.update((id(module._parameters), key) for key in module._parameters)
    return found


def _managed_by(module: Any) -> list[tuple[nn.Module, str]] | None:
    """Where the parameters hang that a module of FSDP exchanges; None for another one."""
    try:
        if hasattr(type(module), "_get_fsdp_state"):
            groups = module._get_fsdp_state()._fsdp_param_groups
            infos = [each._module_info for group in groups for each in group.fsdp_params]
            shared = [
                place
                for info in infos
                for place in zip(info.shared_modules, info.shared_param_names, strict=True)
            ]
            return [*((info.module, info.param_name) for info in infos), *shared]
        if type(module).__name__ == "FullyShardedDataParallel":
            handle = module._handle
            infos = handle.flat_param._param_infos if handle is not None else []
            return [(info.module, info.param_name) for info in infos]
    except AttributeError:
        return None
    return None


@_observing("the store of the process group")
def default_store() -> Any:
    """A connection of one's own to the store of the process group: who waits on it stops nobody else."""
    from torch.distributed.distributed_c10d import _get_default_store

    store: Any = _get_default_store()
    return store.clone()
