"""Random pixels, waveforms and spectra of the shapes that a config asks for, and their places in a text."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

SENSED = ("pixel_values", "input_values", "input_features")
"""The arguments of a forward that are no text."""

_SIDE = 64  # pixels, of a model whose config names no size
_SAMPLES = 4000  # of a waveform: more than the first convolutions of any usual model take in
_FRAMES = 100  # of a spectrum, where the config does not fix them


def sights(
    model: Any, takes: Mapping[str, Any], batch: int, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """What the forward may see or hear, in the model's dtype, the likeliest first; nothing of a text one."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {k: torch.randn(shape, generator=generator).to(dtype) for k, shape in shapes.items()}

    seen = [*_pictures(model.config, batch)] if "pixel_values" in takes else []
    heard = [shapes for shapes in _sounds(model.config, batch) if shapes.keys() <= takes.keys()]
    if seen and heard:
        yield drawn({"pixel_values": seen[0][0]} | heard[0])
    for shape, beside in seen:
        if beside.keys() <= takes.keys():
            yield drawn({"pixel_values": shape}) | beside
    yield from map(drawn, heard)


def _known(beside: Mapping[str, Tensor], takes: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in beside.items() if name in takes}


def _pictures(config: Any, batch: int) -> Iterator[tuple[tuple[int, ...], dict[str, Tensor]]]:
    """Shapes of pixels, and what says of them: patches, a picture a row, a film, a list of one picture."""
    inner = (getattr(config, name, None) for name in ("vision_config", "encoder"))
    own = next((one for one in inner if one is not None), config)
    names = ("num_channels", "in_channels", "in_chans")
    channels = next((n for name in names if isinstance(n := getattr(own, name, None), int)), 3)
    patch, merge = getattr(own, "patch_size", None), getattr(own, "spatial_merge_size", None)
    if isinstance(patch, int) and isinstance(merge, int):
        volume = channels * getattr(own, "temporal_patch_size", 1) * patch**2
        grid = torch.tensor([[1, 2 * merge, 2 * merge]] * batch)
        yield (batch * 4 * merge**2, volume), {"image_grid_thw": grid}
    side = getattr(own, "image_size", None) or getattr(own, "input_size", None) or _SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    picture = (channels, height, width)
    yield (batch, *picture), {}
    yield (batch, *picture), {"image_sizes": torch.tensor([[height, width]] * batch)}
    frames = getattr(own, "num_frames", None)
    if isinstance(frames, int):
        yield (batch, frames, *picture), {}
    yield (batch, 1, *picture), {}


def _sounds(config: Any, batch: int) -> Iterator[dict[str, tuple[int, ...]]]:
    config = getattr(config, "audio_config", None) or config
    bins: Any = getattr(config, "num_mel_bins", None)
    side = getattr(config, "spec_size", None)
    if bins and side:  # a spectrum that is folded to a square
        yield {"input_features": (batch, 1, side * (side // bins), bins)}
    if bins and hasattr(config, "patch_size") and hasattr(config, "max_length"):
        yield {"input_values": (batch, config.max_length, bins)}
    yield {"input_values": (batch, _SAMPLES)}
    if bins:
        frames = 2 * getattr(config, "max_source_positions", _FRAMES // 2)
        yield {"input_features": (batch, bins, frames)}
    names = ("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins")
    bins = next((n for name in names if isinstance(n := getattr(config, name, None), int)), 80)
    yield {"input_features": (batch, _FRAMES, bins)}


def image_token(config: Any) -> int | None:
    """The token that stands in a text for a part of a picture."""
    names = ("image_token_id", "image_token_index")
    return next(
        (token for name in names if (token := getattr(config, name, None)) is not None), None
    )


def with_places(
    model: Any, text: Mapping[str, Tensor], seen: Mapping[str, Tensor], takes: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Text with as many places for a picture as the model gives it features; as it is, where it has none."""
    ids, token = text.get("input_ids"), image_token(model.config)
    if ids is None or token is None or "pixel_values" not in seen:
        return dict(text)
    with suppress(Exception), torch.no_grad():  # then it is asked without places, and refuses
        asked = inspect.signature(model.get_image_features).parameters
        features = model.get_image_features(**{k: v for k, v in seen.items() if k in asked})
        features = getattr(features, "pooler_output", features)
        if isinstance(features, list | tuple):
            features = torch.cat([each.flatten(0, -2) for each in features])
        places = features.shape[:-1].numel() // len(ids)
        image = torch.full((len(ids), places), token, dtype=ids.dtype)
        ids = torch.cat([ids[:, :1], image, ids[:, 1:]], 1)
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        kinds = {"mm_token_type_ids": (ids == token).long()}
        return found | _known(kinds, takes)
    return dict(text)
