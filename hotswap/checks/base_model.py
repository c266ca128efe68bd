"""A base model on the meta device, from its config alone: what its modules offer to LoRA."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hotswap.adapters.fit import BaseModel
from hotswap.adapters.hub import cache_only
from hotswap.adapters.pipeline_folder import read_pipeline_folder
from hotswap.adapters.plan import ModulePlan
from hotswap.adapters.spec import AdapterSpec
from hotswap.engine.incoming.renamed import spec_in_names_of
from hotswap.engine.incoming.validate import without_lora
from hotswap.errors import HotswapError, MissingExtraError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def read_base(base: str | Path) -> BaseModel:
    """Build the model of a folder, a config file or a hub id without weights, and describe it.

    Of the folder of a pipeline all components are built. No code of the model's own is run. Raises
    HotswapError when there is no config or no such model.
    """
    pipeline = read_pipeline_folder(base)
    if pipeline is None:
        model = build(base)
        return replace(describe(model, str(base)), respell=_Respelling(str(base), model))
    whole = BaseModel(str(base), {}, {}, "", None, tuple(pipeline.components), pipeline.family)
    for name, kind in pipeline.components.items():
        part = describe(_built(pipeline.path / name, f"{base}/{name}", kind), name)
        whole.modules.update({f"{name}.{key}": place for key, place in part.modules.items()})
        whole.parameters.update({f"{name}.{key}": shape for key, shape in part.parameters.items()})
        whole = replace(whole, others=(*whole.others, *(f"{name}.{key}" for key in part.others)))
        if part.widens is not None:
            whole = replace(whole, widens=f"{name}.")
    return whole


def build(base: str | Path) -> nn.Module:
    """Build the model of a folder, a config file or a hub id without weights; raises HotswapError."""
    return _built(Path(base), str(base))


def _built(path: Path, name: str, kind: tuple[str, str] | None = None) -> nn.Module:
    """Build a model; raises HotswapError for whatever keeps it from being built."""
    try:
        return _build(path, name, kind)
    except HotswapError:
        raise
    except Exception as error:  # of any model's code: a missing package, a value that it refuses
        lines = [line.strip() for line in str(error).splitlines()]
        first = next(filter(None, lines), type(error).__name__).rstrip(":")
        raise HotswapError(
            f"--base {name}: the model cannot be built from its config: {first[:300]}"
        ) from error


class _Respelling:
    """Puts adapters in a base model's names; another process builds the model again when it needs it."""

    def __init__(self, base: str, model: nn.Module | None = None) -> None:
        self._base, self._model = base, model

    def __call__(self, spec: AdapterSpec) -> AdapterSpec:
        if self._model is None:
            self._model = _build(Path(self._base), self._base)
        return spec_in_names_of(self._model, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Respelling, (self._base,)


def describe(model: nn.Module, name: str) -> BaseModel:
    """Say of each module of a model what an adapter for it looks like."""
    places = ((key, _place(module)) for key, module in model.named_modules())
    modules = {key: place for key, place in places if place is not None}
    parameters = {key: tuple(p.shape) for key, p in model.named_parameters(remove_duplicate=False)}
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    kind, others = type(model).__name__, tuple(without_lora(model))
    widens = "" if kind == "FluxTransformer2DModel" else None
    told = getattr(getattr(model, "config", None), "architectures", None) or ()
    return BaseModel(
        name,
        modules,
        parameters,
        prefix,
        widens=widens,
        others=others,
        kind=kind if kind in told else "",
    )


def _build(path: Path, name: str, wanted: tuple[str, str] | None = None) -> nn.Module:
    """Build a model on the meta device; ``wanted`` is its library and class, else its config tells."""
    library, known = wanted or ("", "")
    if library not in ("", "diffusers", "transformers"):
        raise ValueError(f"{known} is code of the pipeline's own, which is not run")
    if not path.exists() and (path.is_absolute() or name.startswith(".")):
        raise HotswapError(f"--base {name}: the model cannot be built: no such file or folder")
    file = path / "config.json" if path.is_dir() else path
    fields: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(fields, dict):
        raise ValueError(f"{file} is not a JSON object")
    with torch.device("meta"):
        if "_class_name" in fields:
            return _of_diffusers(fields)
        import transformers

        where = str(path) if path.exists() else name
        config = transformers.AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=cache_only()
        )
        known = known or (getattr(config, "architectures", None) or [""])[0]
        kind = getattr(transformers, known, transformers.AutoModel.from_config)
        return kind(config)  # type: ignore[no-any-return]


def _of_diffusers(fields: dict[str, Any]) -> nn.Module:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("--base of a diffusers model", "diffusers", "diffusers") from error
    kind = getattr(diffusers, str(fields["_class_name"]))
    return kind.from_config(fields)  # type: ignore[no-any-return]


def _place(module: nn.Module) -> ModulePlan | None:
    if isinstance(module, nn.Linear):
        return ModulePlan("linear", 1, module.in_features, module.out_features)
    if isinstance(module, nn.Embedding):
        return ModulePlan("embedding", 1, module.num_embeddings, module.embedding_dim)
    if isinstance(module, _CONVOLUTIONS):
        kernel, groups = tuple(module.kernel_size), module.groups
        width = module.in_channels
        return ModulePlan("conv", groups, width, module.out_channels, kernel, groups)
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:  # of GPT-2: (in, out)
        return ModulePlan("linear", 1, *weight.shape)
    if isinstance(module, nn.MultiheadAttention):
        return ModulePlan("linear", 1, module.embed_dim, 3 * module.embed_dim)
    return None
