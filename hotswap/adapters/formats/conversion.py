"""The libraries' own converters, run over tensors without data; torch is imported only when one runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hotswap.adapters.formats.component import COMPONENTS, split
from hotswap.adapters.header import TensorInfo
from hotswap.adapters.texts import Family

LEFT_OUT = "it leaves alphas out"
"""How the problem begins that a converter has with alphas beside names of another program."""
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class Converted:
    """What a converter made of a file: tensors by component in PEFT's names, and alphas where it has some."""

    tensors: dict[str, dict[str, TensorInfo]]
    alphas: dict[str, dict[str, float]]

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shape of each tensor."""
        return {
            name: {key: info.shape for key, info in own.items()}
            for name, own in self.tensors.items()
        }


def converted(
    family: Family,
    tensors: Mapping[str, TensorInfo],
    values: Mapping[str, bytes],
    pairs: int,
) -> Converted:
    """Run the converter of a pipeline over the header of a file and the values of its scalars.

    Raises ValueError when it leaves out some of the ``pairs`` of the file, and whatever it raises itself.
    """
    found, _ = for_pipeline(family, stand_ins(tensors, values))
    names = [name for own in found.tensors.values() for name in own]
    modules = sum(name.endswith("lora_A.weight") for name in names)
    if modules < pairs:
        raise ValueError(f"{pairs} modules in the file, {modules} of them understood")
    if alpha := next((name for name in names if name.endswith(".alpha")), None):
        raise ValueError(f"{LEFT_OUT}, as {alpha}")
    strange = [n for n in names if n.partition(".")[0] in COMPONENTS]
    if strange:
        raise ValueError(f"{strange[0]} is left over")
    return found


def stand_ins(tensors: Mapping[str, TensorInfo], values: Mapping[str, bytes]) -> dict[str, Any]:
    """Tensors without data for a header, but for those of which there are values."""
    import torch

    found = {}
    for name, info in tensors.items():
        dtype = getattr(torch, _DTYPES.get(info.dtype, "uint8"))
        if name in values:
            data = torch.frombuffer(bytearray(values[name]), dtype=dtype)
            found[name] = data.reshape(info.shape).clone()
        else:
            found[name] = torch.empty(info.shape, dtype=dtype, device="meta")
    return found


def infos(tensors: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Dtype and shape of tensors."""
    words = {dtype: word for word, dtype in _DTYPES.items()}
    return {
        name: TensorInfo(
            words.get(str(value.dtype).removeprefix("torch."), str(value.dtype)),
            tuple(value.shape),
            0,
            0,
        )
        for name, value in tensors.items()
    }


def for_pipeline(
    family: Family, tensors: Mapping[str, Any]
) -> tuple[Converted, dict[str, dict[str, Any]]]:
    """Convert a state dict with a pipeline's own code, then to PEFT's names: what it is, and the values.

    Raises what the converter raises, and ValueError where a tensor is of no component.
    """
    options: dict[str, Any] = {"return_lora_metadata": True, "return_alphas": True}
    with _quiet():
        import diffusers

        pipeline = getattr(diffusers, family.pipeline)
        if hasattr(pipeline, "unet_name"):
            options["unet_config"] = SimpleNamespace(layers_per_block=family.layers)
        state, *more = pipeline.lora_state_dict(dict(tensors), **options)
        alphas = dict((more[0] if len(more) > 1 else None) or {})
        found, factors = {}, {}
        for component, own in split(state).items():
            if component not in COMPONENTS:
                raise ValueError(f"{next(iter(own))} is of no component")
            names = _names(component, own)
            found[component] = {names[name]: value.contiguous() for name, value in own.items()}
            prefix = f"{component}."
            factors[component] = {
                names.get(key, key).removesuffix(".lora_A.weight"): float(alpha)
                for name, alpha in alphas.items()
                if name.startswith(prefix)
                for key in [name.removeprefix(prefix).removesuffix(".alpha")]
            }
    told = Converted({name: infos(own) for name, own in found.items()}, factors)
    return told, found


def converted_for(
    model: Any, config: Any, tensors: Mapping[str, Any]
) -> tuple[dict[str, Any], Any] | None:
    """Put an adapter of transformers 4 in the names of a model of transformers 5, by PEFT's own mapping.

    Changes ``config`` in place. None where the model or the library has no mapping that applies.
    """
    try:
        from peft.utils import transformers_weight_conversion as mapping
    except ImportError:  # transformers 4
        return None
    if not hasattr(getattr(model, "config", None), "model_type"):
        return None
    try:
        mapping.convert_peft_config_for_transformers(config, model, None)
        found = mapping.convert_peft_adapter_state_dict_for_transformers(
            model, config, dict(tensors)
        )
    except (ValueError, KeyError, RuntimeError):
        return None
    return {name: value.contiguous() for name, value in found.items()}, config


def _names(component: str, tensors: Mapping[str, Any]) -> dict[str, str]:
    """PEFT's names of tensors that diffusers has, by the steps that it takes when it loads them."""
    names = {name: name for name in tensors}
    if not any("lora_A" in name for name in names):
        from diffusers.utils import (
            convert_state_dict_to_diffusers,
            convert_state_dict_to_peft,
            convert_unet_state_dict_to_peft,
        )

        if component.startswith("text_encoder"):
            names = convert_state_dict_to_peft(convert_state_dict_to_diffusers(names))
        else:
            names = convert_unet_state_dict_to_peft(names)
    return {old: new for new, old in names.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers and transformers from remarks, also those at their import."""
    from diffusers.utils import logging
    from transformers.utils import logging as others

    levels = [(each, each.get_verbosity()) for each in (logging, others)]
    for each, _ in levels:
        each.set_verbosity_error()
    try:
        yield
    finally:
        for each, level in levels:
            each.set_verbosity(level)
