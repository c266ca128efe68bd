"""What the processor or tokenizer that was saved beside a model makes: a picture, a tone, a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotswap.checks.sights import SENSED

TEXTS = ("The river is high after the rain.", "Swap the adapter, not the model.")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def has_any(folder: str | Path | None, names: tuple[str, ...]) -> bool:
    """Whether one of these files lies in the folder."""
    return folder is not None and any(Path(folder, name).is_file() for name in names)


def tokens(folder: str | Path | None, batch: int, most: int) -> Tensor | None:
    """Sentences by the saved tokenizer, rows of one length; None without one that works."""
    if not has_any(folder, TOKENIZERS):
        return None
    with suppress(Exception):  # whatever a saved tokenizer lacks
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        rows = [tokenizer(text)["input_ids"] for text in TEXTS[:batch]]
        length = min(most, *map(len, rows))
        return torch.tensor([row[:length] for row in rows]) if length else None
    return None


def processed(
    model: Any, folder: str | Path | None, takes: Mapping[str, Any], batch: int
) -> Iterator[dict[str, Tensor]]:
    """What a saved processor makes of a picture or a tone, with text where it takes some; else nothing."""
    import transformers

    if not has_any(folder, PROCESSORS):
        return
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    for kind in ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"):
        processor: Any = None
        with suppress(Exception):  # whatever it lacks
            processor = getattr(transformers, kind).from_pretrained(str(folder))
        for text in _texts(processor, takes):
            with suppress(Exception):
                given = _seen_or_heard(processor, takes, batch) | {
                    k: [v] * batch for k, v in text.items()
                }
                made = processor(**given, return_tensors="pt")
                found = {
                    name: value.to(dtype) if value.is_floating_point() else value
                    for name, value in made.items()
                    if name in takes and isinstance(value, Tensor)
                }
                if found.keys() & set(SENSED):  # a tokenizer in its place leaves the picture out
                    yield found


def _texts(processor: Any, takes: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """A sentence with the place of a picture, in the ways that processors want it; nothing without one."""
    if processor is None:
        return
    if "input_ids" not in takes or getattr(processor, "tokenizer", None) is None:
        yield {}
        return
    asked = [{"type": "image"}, {"type": "text", "text": TEXTS[0]}]
    with suppress(Exception):  # one without a template, or without pictures in it
        said = [{"role": "user", "content": asked}]
        yield {"text": processor.apply_chat_template(said, tokenize=False)}
    tokenizer = processor.tokenizer
    for name in ("image_token", "boi_token"):
        word = getattr(processor, name, None) or getattr(tokenizer, name, None)
        if isinstance(word, str):
            yield {"text": f"{word} {TEXTS[0]}"}
    yield {"text": TEXTS[0]}


def _seen_or_heard(processor: Any, takes: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """A picture, or a tone of a second, as a processor takes it."""
    if "pixel_values" in takes:
        row, column = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
        picture = torch.stack([row, column, row + column], -1).to(torch.uint8).numpy()
        return {"images": [picture] * batch}
    heard = getattr(processor, "feature_extractor", processor)
    rate = int(heard.sampling_rate)
    tone = torch.sin(torch.arange(rate) * (2 * torch.pi * 440 / rate)).numpy()
    name = "raw_speech" if heard is processor else "audio"
    return {name: [tone] * batch, "sampling_rate": rate}
