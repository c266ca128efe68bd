"""The rank and alpha of an adapter, as far as the source shows them."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.run import Run
from hotswap.lint.typestate import Shape

_RANK_IN_NAME = re.compile(
    r"(?:^|[^a-z])(?:lora_?)?(rank|r)[-_=]?(\d{1,4})(?![0-9a-z])", re.IGNORECASE
)
_SMALL = {1, 2, 4, *range(8, 129, 8)}
_USUAL_RANKS = {"r": _SMALL, "rank": _SMALL | {192, 256, 320, 384, 512, 768, 1024}}
"""What a number after that letter or word can be: ``r512`` is more often a resolution."""
_RANK_KEYS = ("rank", "r", "lora_rank", "lora_r")


def shape_of(run: Run, value: v.Value | None, node: ast.expr | None = None) -> Shape:
    """Return the shape of the adapter that a value names; ``node`` is where the value was written."""
    if isinstance(value, Shape):
        return value
    key = v.path_key(value)
    saved = run.s.heap.get(("saved", key)) if key is not None else None
    if isinstance(saved, Shape):
        return saved
    if isinstance(node, ast.Subscript | ast.Attribute):  # an entry of a table of adapters
        owner = run.ev(node.value)
        ranks = (
            [v.whole_of(owner.items.get(k)) for k in _RANK_KEYS]
            if isinstance(owner, v.Dict)
            else []
        )
        rank = next((rank for rank in ranks if rank is not None), None)
        if rank is not None:
            return Shape(rank)
    text = v.text_of(value)
    if text is not None:
        return _shape_in_folder(run.folder, text)
    written = ast.walk(node) if isinstance(node, ast.Call | ast.BinOp | ast.JoinedStr) else ()
    texts = [n.value for n in written if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return Shape(_rank_in_name("/".join(texts)), origin=key)


def _shape_in_folder(base: Path | None, path: str) -> Shape:
    for root in (base, Path()):
        if root is None or "\0" in path or len(path) > 200:
            continue
        name = os.path.join(root, path, "adapter_config.json")
        if not os.path.isfile(name):
            continue
        try:
            config = json.loads(Path(name).read_text(encoding="utf-8"))
            ranks = [int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())]
            return Shape(max(ranks), config.get("lora_alpha"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return Shape(_rank_in_name(path))


def _rank_in_name(path: str) -> int | None:
    found = [(word.lower(), int(rank)) for word, rank in _RANK_IN_NAME.findall(path)]
    ranks = [rank for word, rank in found if rank in _USUAL_RANKS[word]]
    return ranks[0] if len(ranks) == len(found) == 1 else None
