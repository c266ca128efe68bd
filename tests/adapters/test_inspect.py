"""Inspector: whatever the files of strangers say, the answer is findings."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hotswap
from hotswap.adapters.inspect import Inspector
from tests.support.adapter_files import raw_safetensors, write_adapter
from tests.support.adapter_samples import WEIGHTS, adapter


def test_links_into_the_cache_of_the_hub_are_usual(tmp_path: Path) -> None:
    adapter()(tmp_path / "snapshots")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for file in (tmp_path / "snapshots" / "a").iterdir():
        file.rename(blobs / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    assert hotswap.check_adapters(tmp_path / "snapshots" / "a") == []


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"r": 1' + "0" * 10_000 + "}",
        '{"peft_type": "LORA", "rank_pattern": {"(a+)+b": 4}}',
        '{"peft_type": "LORA", "rank_pattern": {".*.*.*.*.*x": 4}}',
        '{"peft_type": "LORA", "r": NaN}',
        "\ud800",
    ],
)
def test_hostile_configs_are_one_finding(text: str, tmp_path: Path) -> None:
    adapter()(tmp_path)
    (tmp_path / "a" / "adapter_config.json").write_text(text, errors="surrogatepass")
    (found,) = hotswap.check_adapters(tmp_path / "a")
    assert found.code == "HSW003"


@pytest.mark.parametrize("key", ["x.layers.{}.q", "x.layers.{}.(q|v)"])
def test_thousands_of_patterns_take_seconds(key: str, tmp_path: Path) -> None:
    modules = {f"layers.{n}.self_attn.{part}": (8, 8) for n in range(80) for part in "qkvo"}
    pattern = {key.format(n): 4 for n in range(4200)}
    folder = write_adapter(tmp_path, modules=modules, config={"rank_pattern": pattern})
    start = time.process_time()
    (found,) = Inspector()(str(folder)).findings
    assert time.process_time() - start < 15  # a cache that thrashes takes minutes
    assert (found.code, "(and 4199 more)" in found.message) == ("HSW111", True)


def test_patterns_that_take_long_together_are_refused(tmp_path: Path) -> None:
    modules = {"a." * 100 + str(n): (4, 4) for n in range(20)}
    keys = {rf".*{n}.*{n}.*x": 8 for n in range(200)}
    folder = write_adapter(tmp_path / "a", modules=modules, config={"rank_pattern": keys})
    start = time.process_time()
    (found,) = hotswap.check_adapters(folder)
    assert (found.code, "take too long" in found.message) == ("HSW003", True)
    assert time.process_time() - start < 60  # it would be hours


def entry(start: Any, end: Any, shape: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])},
        {"a": entry(0, 8, [2]), "b": entry(2**63, 2**63 + 8, [2])},
        {"a": entry(0, 8, [2]), "b": entry(8, 16, [2.0])},
        {"a": entry(0, 4, [1]), "b": entry(4, 8, [True])},
        {"a": entry(0, 8, [-2])},
        {"a": entry(8, 0, [-2])},
        {"a": entry(0, 8, [2**40, 2**40])},
        {"../../etc/x": entry(0, 8, [2])},
        {"/etc/x": entry(0, 8, [2])},
        {"a" * 1000: entry(0, 8, [2])},
        {"a\nb": entry(0, 8, [2])},
        {"__metadata__": {"a": 1}},
        {"__metadata__": []},
    ],
)
def test_hostile_headers_are_one_finding(header: dict[str, Any], tmp_path: Path) -> None:
    adapter()(tmp_path)
    (tmp_path / "a" / WEIGHTS).write_bytes(raw_safetensors(json.dumps(header).encode(), 16))
    (found,) = hotswap.check_adapters(tmp_path / "a")
    assert found.code == "HSW005"


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","\\u0064type":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)
def test_a_name_that_occurs_twice_is_a_finding(text: bytes, tmp_path: Path) -> None:
    adapter()(tmp_path)
    (tmp_path / "a" / WEIGHTS).write_bytes(raw_safetensors(text, 8))
    (found,) = hotswap.check_adapters(tmp_path / "a")
    assert "occurs twice" in found.message


def test_unicode_names_are_names(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "日本語 ü", modules={"é": (4, 4)})
    assert hotswap.check_adapters(folder) == []
    assert [finding.code for finding in hotswap.check_adapters("a\0b")] == ["HSW001"]


KEPT = (b"", b"{", b"\x02" + bytes(7) + b"{}", b"\xff" * 8, b"\x08" + bytes(7) + b'{"a":[]}')


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), config=st.booleans())
@example(data=KEPT[0], config=True)
@example(data=KEPT[2], config=False)
@example(data=KEPT[3], config=False)
@example(data=KEPT[4], config=False)
def test_bytes_of_any_kind_are_findings(data: bytes, config: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write_adapter(Path(root) / "a")
        (folder / ("adapter_config.json" if config else WEIGHTS)).write_bytes(data)
        assert hotswap.check_adapters(folder) != []
