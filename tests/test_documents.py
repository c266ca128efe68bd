"""hotswap.documents: what is read as a plan or a report is a regular file of a size that is possible."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hotswap
from hotswap import documents
from hotswap.adapters.plan import SwapPlan
from hotswap.errors import HotswapError
from hotswap.report.document import read
from tests.support.adapter_files import write_adapter

READERS = {"plan": SwapPlan.read, "report": read}


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_regular_file_is_refused_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "large").write_text(" " * 200)
    monkeypatch.setattr(documents, "LIMIT", 100_000)
    (tmp_path / "larger").write_text(" " * 100_001)
    for path, text in {
        Path("/dev/zero"): "is no regular file",
        tmp_path / "pipe": "is no regular file",
        tmp_path / "missing": "cannot be read: No such file",
        tmp_path / "text": "is not UTF-8",
        tmp_path / "deep": "is not JSON",
        tmp_path / "large": "is not JSON",
        tmp_path / "larger": "has more than 100000 bytes",
    }.items():
        with pytest.raises(HotswapError, match=text) as refused:
            READERS[kind](path)
        assert len(str(refused.value).splitlines()) == 1


def replaced(value: Any, draw: random.Random) -> Iterator[Any]:
    """The document with one of its values replaced by something odd, for each of its values."""
    odd = [None, -1, 2.5, "x", [], {}, [[]], {"a": 1}, True, 10**30, float("nan")]
    paths: list[tuple[Any, ...]] = []

    def collect(part: Any, path: tuple[Any, ...]) -> None:
        paths.append(path)
        if isinstance(part, dict | list):
            inside = part.items() if isinstance(part, dict) else enumerate(part)
            for key, each in inside:
                collect(each, (*path, key))

    collect(value, ())
    for path in paths:
        made = copy.deepcopy(value)
        if not path:
            yield draw.choice(odd)
            continue
        owner = made
        for key in path[:-1]:
            owner = owner[key]
        for other in draw.sample(odd, 4):
            owner[path[-1]] = other
            yield copy.deepcopy(made)
        del owner[path[-1]]
        yield made


def test_a_malformed_plan_is_one_sentence_or_a_plan(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    plan = hotswap.plan([folder])
    draw, refused = random.Random(3), []  # noqa: S311
    path = tmp_path / "plan.json"
    for document in replaced(plan.to_dict(), draw):
        path.write_text(json.dumps(document))
        try:
            found = SwapPlan.read(path)
        except HotswapError as error:
            refused.append(str(error))
            continue
        str(found)
        hotswap.check_adapters([folder], plan=found)
    assert len(refused) > 50
    assert not [text for text in refused if len(text.splitlines()) != 1]
    path.write_text(json.dumps(plan.to_dict()))
    assert SwapPlan.read(path) == plan
