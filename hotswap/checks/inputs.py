"""Inputs for a model of transformers, from its config and what was saved beside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.checks.processed import processed, tokens
from hotswap.checks.sights import SENSED, sights, with_places
from hotswap.errors import HotswapError

_DRAWN = "made from the config (random tokens)"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of a forward, and what they were made of."""

    given: dict[str, Any]
    origin: str

    @property
    def told(self) -> str:
        """How many rows of which tensors, and what they were made of."""
        names = [name for name, value in self.given.items() if isinstance(value, Tensor)]
        ids = self.given.get("input_ids")
        rows = len(self.given[names[0]] if ids is None else ids)
        return f"{rows} of {', '.join(names)}, {self.origin}"


def default_inputs(
    model: Any, folder: str | Path | None = None, *, batch: int = 2, length: int = 8
) -> dict[str, Any]:
    """The first inputs that the model runs on, of those that its config and files suggest.

    ``folder`` is where it was read from: a processor or tokenizer that lies there is used. The same at
    every call. Raises HotswapError where the model runs on none, with what it raised.
    """
    return made_inputs(model, folder, batch=batch, length=length).given


def made_inputs(
    model: Any, folder: str | Path | None = None, *, batch: int = 2, length: int = 8
) -> Inputs:
    """The default inputs, and what they were made of; raises HotswapError as ``default_inputs`` does."""
    error: Exception | None = None
    for found in _suggested(model, folder, batch, length):
        try:
            with torch.no_grad():
                model(**found.given)
        except Exception as raised:  # whatever the model raises
            error = error or raised
            continue
        return found
    kind = type(model).__name__
    if error is None:
        name = getattr(model, "main_input_name", None)
        raise HotswapError(f"no inputs are known for {kind}, whose main input is {name!r}")
    said = " ".join(str(error).split())[:300]
    raise HotswapError(
        f"{kind} does not run on inputs from its config: {type(error).__name__}: {said}"
    )


def _suggested(model: Any, folder: str | Path | None, batch: int, length: int) -> Iterator[Inputs]:
    """Inputs to try: of a processor, with all that the forward takes, text alone; each also as one row."""
    takes = inspect.signature(model.forward).parameters
    keywords = any(one.kind is one.VAR_KEYWORD for one in takes.values())
    caches = hasattr(_text_config(model.config), "use_cache") and ("use_cache" in takes or keywords)
    sizes = dict.fromkeys((batch, 1))
    tried = zip_longest(*(_of_so_many(model, folder, takes, rows, length) for rows in sizes))
    for found in (one for pair in tried for one in pair if one is not None):
        if "attention_mask" not in takes:
            found.given.pop("attention_mask", None)
        if caches:
            found.given["use_cache"] = False  # a cache is guarded on, and is wrong after a swap
        yield found


def _of_so_many(
    model: Any, folder: str | Path | None, takes: Mapping[str, Any], rows: int, length: int
) -> Iterator[Inputs]:
    config = model.config
    generator = torch.Generator().manual_seed(0)
    decoded = _decoded(config, takes, rows, max(length // 2, 1), generator)
    if any(name in takes for name in SENSED):
        for made in processed(model, folder, takes, rows):
            yield Inputs({**made, **decoded}, "made by the saved processor")
    text, origin = _text(config, folder, rows, length, generator, takes)
    for seen in sights(model, takes, rows, generator):
        drawn = " and ".join([*(["tokens"] if origin == _DRAWN else []), _called(seen)])
        first = f"{origin} and " if origin not in ("", _DRAWN) else "made "
        given = {**seen, **with_places(model, text, seen, takes), **decoded}
        yield Inputs(given, f"{first}from the config (random {drawn})")
    if text:
        lacking = [name for name in SENSED if name in takes]
        without = f", without {', '.join(lacking)}" if lacking else ""
        yield Inputs({**text, **decoded}, f"{origin}{without}")


def _decoded(
    config: Any, takes: Mapping[str, Any], rows: int, length: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """What the decoder of an encoder-decoder goes on from: tokens, of each codebook, or a spectrum."""
    bins = getattr(config, "num_mel_bins", None)
    if not getattr(config, "is_encoder_decoder", False):
        return {}
    if "decoder_input_values" in takes and bins:
        return {"decoder_input_values": torch.randn(rows, length, bins, generator=generator)}
    if "decoder_input_ids" not in takes:
        return {}
    own = getattr(config, "decoder", None)
    books = getattr(own, "num_codebooks", None) or 1
    told = own if books > 1 else config
    return {"decoder_input_ids": _ids(told, rows * books, length, generator)}


def _called(seen: Mapping[str, Tensor]) -> str:
    words = {"pixel_values": "pixels", "input_values": "sound", "input_features": "sound"}
    return " and ".join(word for name, word in words.items() if name in seen)


def _text_config(config: Any) -> Any:
    """The config of the text model, where a model has several."""
    told = config
    with suppress(Exception):
        told = config.get_text_config()
    return told if hasattr(told, "vocab_size") else getattr(config, "text_encoder", told)


def _text(
    config: Any,
    folder: str | Path | None,
    rows: int,
    length: int,
    generator: torch.Generator,
    takes: Mapping[str, Any],
) -> tuple[dict[str, Tensor], str]:
    """Tokens and where they are from: real text beats random tokens, if it is in the model's vocabulary."""
    if "input_ids" not in takes:
        return {}, ""
    ids, origin = tokens(folder, rows, 2 * length), "made by the saved tokenizer"
    if ids is None or int(ids.max()) >= (getattr(_text_config(config), "vocab_size", None) or 0):
        ids, origin = _ids(config, rows, length, generator), _DRAWN
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, origin


def _ids(config: Any, rows: int, length: int, generator: torch.Generator) -> Tensor:
    told = _text_config(config)
    size = getattr(told, "vocab_size", None) or getattr(config, "vocab_size", None)
    if size is None:
        raise HotswapError("the model's configuration has no vocab_size")
    names = ("_token_id", "_token_index")  # of the end, of a picture, …
    known = {**config.to_dict(), **told.to_dict()}
    special = {token for name, token in known.items() if name.endswith(names)}
    usual = [token for token in range(size) if token not in special] or list(range(size))
    places = torch.randint(0, len(usual), (rows, length), generator=generator)
    return torch.tensor(usual)[places]


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
