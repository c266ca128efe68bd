"""Inputs for a model of transformers, from its config and what was saved beside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError

TEXTS = ("The river is high after the rain.", "Swap the adapter, not the model.")
_SIDE = 64  # pixels, of a model whose config names no size
_SAMPLES = 4000  # of a waveform: more than the first convolutions of any usual model take in
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class _Sizes:
    batch: int
    length: int


def default_inputs(
    model: Any, folder: str | Path | None = None, *, batch: int = 2, length: int = 8
) -> dict[str, Any]:
    """The first inputs that the model runs on, of those that its config and files suggest.

    ``folder`` is where it was read from: a processor or tokenizer that lies there is used. The same at
    every call. Raises HotswapError where the model runs on none, with what it raised.
    """
    error: Exception | None = None
    for inputs in _suggested(model, folder, _Sizes(batch, length)):
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as raised:  # whatever the model raises
            error = error or raised
            continue
        return inputs
    kind = type(model).__name__
    if error is None:
        name = getattr(model, "main_input_name", None)
        raise HotswapError(f"no inputs are known for {kind}, whose main input is {name!r}")
    said = " ".join(str(error).split())[:300]
    raise HotswapError(
        f"{kind} does not run on inputs from its config: {type(error).__name__}: {said}"
    )


def _suggested(model: Any, folder: str | Path | None, sizes: _Sizes) -> Iterator[dict[str, Any]]:
    """Inputs to try: with all that the forward takes first, then text alone; also one row alone."""
    takes = inspect.signature(model.forward).parameters
    config = model.config
    generator = torch.Generator().manual_seed(0)
    text = _text(config, folder, sizes, generator) if "input_ids" in takes else {}
    sights = _sights(model, takes, sizes.batch, generator)
    both: dict[str, Any] = {**sights, **text}
    candidates = [both, dict(text)] if sights and text else [both]
    if sights and text and (token := _image_token(config)) is not None:
        with suppress(Exception):  # then it is asked without places for the image, and refuses
            ids = _with_image(model, text["input_ids"], sights, token)
            both |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if sights:
        candidates.insert(0, _processed(model, folder, takes, sizes.batch))
    for found in filter(None, candidates):
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
            found["decoder_input_ids"] = _ids(config, sizes, generator)[:, : sizes.length // 2]
        if "attention_mask" in found and "attention_mask" not in takes:
            del found["attention_mask"]
        keywords = any(one.kind is one.VAR_KEYWORD for one in takes.values())
        if hasattr(_text_config(config), "use_cache") and ("use_cache" in takes or keywords):
            found["use_cache"] = False  # a cache is guarded on, and is wrong after a swap
        yield found
        if sizes.batch > 1:
            yield {
                key: value[:1] if isinstance(value, Tensor) else value
                for key, value in found.items()
            }


def _processed(
    model: Any, folder: str | Path | None, takes: Mapping[str, Any], batch: int
) -> dict[str, Any]:
    """What a saved processor makes of a picture or a tone, with text where it takes some; else nothing."""
    import transformers

    if folder is None or not any(Path(folder, name).is_file() for name in _PROCESSORS):
        return {}
    for kind in ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"):
        with suppress(Exception):  # whatever a saved processor lacks
            processor = getattr(transformers, kind).from_pretrained(str(folder))
            made = processor(**_seen_or_heard(processor, takes, batch), return_tensors="pt")
            dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
            return {
                name: value.to(dtype) if value.is_floating_point() else value
                for name, value in made.items()
                if name in takes and isinstance(value, Tensor)
            }
    return {}


def _seen_or_heard(processor: Any, takes: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """A picture or a tone of a second as a processor takes it, with text where it has a tokenizer."""
    given: dict[str, Any] = {}
    if "pixel_values" in takes:
        row, column = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
        picture = torch.stack([row, column, row + column], -1).to(torch.uint8).numpy()
        given["images"] = [picture] * batch
    else:
        heard = getattr(processor, "feature_extractor", processor)
        rate = int(heard.sampling_rate)
        tone = torch.sin(torch.arange(rate) * (2 * torch.pi * 440 / rate)).numpy()
        name = "raw_speech" if heard is processor else "audio"
        given |= {name: [tone] * batch, "sampling_rate": rate}
    if "input_ids" in takes and getattr(processor, "tokenizer", None) is not None:
        given["text"] = [f"{getattr(processor, 'image_token', '')} {TEXTS[0]}"] * batch
    return given


def _text_config(config: Any) -> Any:
    """The config of the text model, where a model has several."""
    with suppress(Exception):
        return config.get_text_config()
    return config


def _text(
    config: Any, folder: str | Path | None, sizes: _Sizes, generator: torch.Generator
) -> dict[str, Tensor]:
    ids = _real_text(config, folder, sizes)
    if ids is None:
        ids = _ids(config, sizes, generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _ids(config: Any, sizes: _Sizes, generator: torch.Generator) -> Tensor:
    told = _text_config(config)
    size = getattr(told, "vocab_size", None) or getattr(config, "vocab_size", None)
    if size is None:
        raise HotswapError("the model's configuration has no vocab_size")
    special = {getattr(told, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "mask")}
    special.add(_image_token(config))
    usual = [token for token in range(size) if token not in special] or list(range(size))
    places = torch.randint(0, len(usual), (sizes.batch, sizes.length), generator=generator)
    return torch.tensor(usual)[places]


def _real_text(config: Any, folder: str | Path | None, sizes: _Sizes) -> Tensor | None:
    """Real text beats random tokens; None without a tokenizer, or with one of another vocabulary."""
    if folder is None or not any(Path(folder, name).is_file() for name in TOKENIZERS):
        return None
    with suppress(Exception):  # whatever a saved tokenizer lacks
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        rows = [tokenizer(text)["input_ids"] for text in TEXTS[: sizes.batch]]
        length = min(2 * sizes.length, *map(len, rows))
        ids = torch.tensor([row[:length] for row in rows])
        size = getattr(_text_config(config), "vocab_size", 0)
        return ids if length and int(ids.max()) < size else None
    return None


def _sights(
    model: Any, takes: Mapping[str, Any], batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Pixels, waveforms or spectra, in the model's dtype."""
    config = model.config
    found: dict[str, tuple[int, ...]] = {}
    if "pixel_values" in takes:
        own = getattr(config, "vision_config", None) or config
        side = getattr(own, "image_size", None) or _SIDE
        height, width = side if isinstance(side, list | tuple) else (side, side)
        found["pixel_values"] = (batch, getattr(own, "num_channels", None) or 3, height, width)
    bins: Any = getattr(config, "num_mel_bins", None)
    if "input_values" in takes:
        found["input_values"] = (
            (batch, config.max_length, bins)
            if bins and hasattr(config, "patch_size")
            else (batch, _SAMPLES)
        )
    if "input_features" in takes:
        bins = bins or getattr(config, "input_feat_per_channel", 80)
        frames = 2 * getattr(config, "max_source_positions", 50)
        wide: tuple[int, ...] = (batch, bins, frames)
        found["input_features"] = wide if hasattr(config, "num_mel_bins") else (batch, frames, bins)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in found.items()
    }


def _image_token(config: Any) -> int | None:
    names = ("image_token_id", "image_token_index")
    return next(
        (token for name in names if (token := getattr(config, name, None)) is not None), None
    )


def _with_image(model: Any, ids: Tensor, seen: Mapping[str, Tensor], token: int) -> Tensor:
    """Text with as many places for an image as the model gives it features."""
    with torch.no_grad():
        features = model.get_image_features(pixel_values=seen["pixel_values"])
    features = getattr(features, "pooler_output", features)
    if isinstance(features, list | tuple):
        features = torch.stack(list(features))
    places = features.shape[:-1].numel() // len(ids)
    image = torch.full((len(ids), places), token, dtype=ids.dtype)
    return torch.cat([ids[:, :1], image, ids[:, 1:]], 1)


def problem_of_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Say in one sentence what is wrong with the arguments of a forward, before it is called."""
    if not inputs:
        return "there are no tensors; name each after an argument of the model's forward"
    takes = inspect.signature(model.forward).parameters
    named = [
        name for name, one in takes.items() if one.kind is not one.VAR_KEYWORD and name != "self"
    ]
    known = {*named, *_OF_KEYWORDS} if len(named) < len(takes) else {*named}
    for name in inputs:
        if name not in known:
            return f"the model's forward takes no {name!r}; it takes {', '.join(named)}"
    size = getattr(_text_config(getattr(model, "config", None)), "vocab_size", None)
    for name, value in inputs.items():
        if not name.endswith("input_ids") or not isinstance(value, Tensor):
            continue
        if value.is_floating_point():
            return f"{name} has dtype {value.dtype}, expected whole numbers"
        if value.numel() and int(value.min()) < 0:
            return f"{name} has the token {int(value.min())}, expected 0 or more"
        if size and value.numel() and int(value.max()) >= size:
            return f"{name} has the token {int(value.max())}, and the model's vocabulary has {size}"
    return None


_OF_KEYWORDS = frozenset(
    {"attention_mask", "position_ids", "use_cache", "return_dict", "token_type_ids"}
)
"""What a forward may take by its ``**kwargs``, for models inside."""
