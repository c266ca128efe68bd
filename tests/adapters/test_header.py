"""The safetensors header: every damage is one finding, never another exception."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hotswap.adapters.header import TensorInfo, _parse, _usual, read_header
from hotswap.adapters.spec import AdapterSpec
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding
from tests.support.adapter_files import (
    lora_tensors,
    raw_safetensors,
    safetensors_bytes,
    write_adapter,
)


def refused(folder: Path, content: bytes) -> Finding:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnreadableAdapterError) as caught:
        read_header(path)
    (finding,) = caught.value.findings
    assert finding.where == str(path)
    return finding


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_header_tells_dtype_shape_and_offsets(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(safetensors_bytes({"a": ("F32", (2, 3)), "b": ("BF16", (4,))}))
    expected = {"a": TensorInfo("F32", (2, 3), 0, 24), "b": TensorInfo("BF16", (4,), 24, 32)}
    assert read_header(path) == expected
    assert read_header(tmp_path) == expected


@pytest.mark.parametrize("length", [0, 7, 8, 40])
def test_a_truncated_header_is_one_finding(tmp_path: Path, length: int) -> None:
    content = safetensors_bytes({"a": ("F32", (2, 3))})[:length]
    finding = refused(tmp_path, content)
    assert (finding.code, "truncated" in finding.message) == ("HSW005", True)


def test_truncated_data_is_one_finding(tmp_path: Path) -> None:
    assert "truncated" in refused(tmp_path, safetensors_bytes({"a": ("F32", (9,))})[:-1]).message


def test_a_header_above_the_limit_is_not_read(tmp_path: Path) -> None:
    finding = refused(tmp_path, (100_000_001).to_bytes(8, "little") + b"{}")
    assert "100000001" in finding.message


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"{", b"\xff\xfe", b'{"a": 1}', b"{" + b'"a":[' * 100_000, b'{"a":' + b"9" * 5000],
)
def test_a_header_that_is_no_table_of_tensors_is_refused(tmp_path: Path, header: bytes) -> None:
    assert refused(tmp_path, raw_safetensors(header)).code == "HSW005"


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry())
    content = raw_safetensors(f'{{"a": {one}, "a": {one}}}'.encode(), 8)
    assert "twice" in refused(tmp_path, content).message


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": entry(offsets=(0, 4))}, "takes 8 bytes"),
        ({"a": entry(shape=(3,))}, "takes 12 bytes"),
        ({"a": entry(offsets=(8, 0))}, "span -8"),
        ({"a": entry(offsets=(8, 16))}, "follows a hole"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(16, 24))}, "ends at byte 24"),
        ({"a": entry()}, "belong to no tensor"),
        ({"a": entry(dtype="F31")}, "unknown dtype"),
        ({"a": entry(dtype=["F32"])}, "unknown dtype"),
        ({"a": entry(shape=(-2,))}, "a list of sizes"),
        ({"a": entry(shape=(True, 2))}, "a list of sizes"),
        ({"a": entry(shape=2)}, "a list of sizes"),
        ({"a": entry(offsets=(0, 4, 8))}, "a list of sizes"),
        ({"a": {"dtype": "F32"}}, "missing"),
        ({"a\n": entry()}, "cannot be printed"),
        ({"\ud800": entry()}, "cannot be printed"),
    ],
)
def test_a_tensor_that_does_not_add_up_is_named(
    tmp_path: Path, tensors: dict[str, Any], words: str
) -> None:
    finding = refused(tmp_path, raw_safetensors(json.dumps(tensors).encode(), 16))
    assert words in finding.message


def test_a_missing_file_is_weights_missing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableAdapterError) as caught:
        read_header(tmp_path)
    assert [f.code for f in caught.value.findings] == ["HSW004"]


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UnreadableAdapterError) as caught:
        read_header(tmp_path)
    assert [f.code for f in caught.value.findings] == ["HSW006"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = st.sampled_from([*lora_tensors({"q_proj": (4, 4)}, bias=True), "__metadata__"])
ENTRIES = JSON | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=5) | JSON,
        "data_offsets": st.lists(st.integers(-1, 600), max_size=3) | JSON,
    }
)
HEADERS = st.dictionaries(NAMES | st.text(max_size=8), ENTRIES).map(
    lambda header: raw_safetensors(json.dumps(header).encode(), 64)
)
TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__")
    | st.sampled_from(["x.lora_embedding_A", "x.lora_embedding_B", "x.lora_A.weight", "other"]),
    st.tuples(
        st.sampled_from(["F32", "BF16", "I8"]),
        st.lists(st.integers(0, 8), max_size=5).map(tuple),
    ),
).map(safetensors_bytes)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "r": st.integers(-1, 10) | JSON,
        "lora_alpha": JSON,
        "rank_pattern": st.dictionaries(st.text(max_size=4), st.integers()) | JSON,
        "alpha_pattern": st.dictionaries(st.text(max_size=4), st.floats()) | JSON,
        "peft_type": JSON,
        **dict.fromkeys(("bias", "lora_bias", "use_rslora", "use_dora", "init_lora_weights"), JSON),
    },
)


WITHOUT_SHAPES = safetensors_bytes(
    {f"q_proj.{part}": ("F32", ()) for part in ("lora_A.weight", "lora_B.weight", "lora_B.bias")}
)


@settings(deadline=None)
@given(content=st.binary(max_size=64) | HEADERS | TENSORS, config=CONFIGS)
@example(content=WITHOUT_SHAPES, config={"lora_bias": True})
def test_anything_gives_a_spec_or_findings_and_never_another_exception(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, config: dict[str, Any]
) -> None:
    folder = write_adapter(tmp_path_factory.getbasetemp() / "anything", config=config)
    (folder / "adapter_model.safetensors").write_bytes(content)
    try:
        spec = AdapterSpec.read(folder)
        said = spec.modules or spec.findings
    except UnreadableAdapterError as error:
        said = error.findings
    assert said


ODD = st.sampled_from([0, 1, 2, 4, 8, -1, True, 2.0, None, "F32", [1], 2**63, {"x": 1}])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "F31", ["F32"]]),
        "shape": st.lists(ODD, max_size=2) | ODD,
        "data_offsets": st.lists(ODD, min_size=2, max_size=3) | ODD,
    }
)
ODD_NAMES = st.sampled_from(
    ["a", "b.c", "..", "/d", "e\n", '"', "\\", "[", "]", "\u00e4", "__metadata__"]
)
METADATA = st.sampled_from([{"format": "pt"}, {"x": '"[{\\'}, {}, {"format": 1}, None, [], "a"])
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (", ", ":"), (" ,", ": "), (",\n", ":")])
GOOD = {"a": ("F32", (2,)), "b.c": ("BF16", ()), "d": ("I8", (0, 3)), "e": ("F4", (2, 5))}
MARKS = st.sampled_from(
    [*(word.encode() for word in '{}[]":, \\\n0123456789-.e_aF'), b"\xff", b"null"]
)


def both_ways(header: bytes, size: int) -> tuple[Any, Any]:
    """What the parser of usual headers says, and that of all headers; a refusal is None."""
    try:
        alone = _parse("a", header, size)
    except UnreadableAdapterError:
        alone = None
    return _usual(header, size), alone


@given(st.dictionaries(ODD_NAMES, ENTRIES | METADATA, max_size=4), SEPARATORS, st.integers(0, 24))
@example({"a": entry(shape=[1], offsets=[0, 4])}, (",", ":"), 4)
@example({"a": entry(shape=[True], offsets=[0, 4])}, (",", ":"), 4)
def test_the_two_parsers_agree_on_odd_headers(
    raw: dict[str, Any], separators: tuple[str, str], size: int
) -> None:
    quick, alone = both_ways(json.dumps(raw, separators=separators).encode(), size)
    assert quick is None or quick == alone


@given(st.data(), SEPARATORS, METADATA)
def test_the_two_parsers_agree_on_headers_with_a_few_other_bytes(
    data: st.DataObject, separators: tuple[str, str], metadata: Any
) -> None:
    content = safetensors_bytes(GOOD)
    length = int.from_bytes(content[:8], "little")
    raw = {**json.loads(content[8 : 8 + length]), "__metadata__": metadata}
    header = bytearray(json.dumps(raw, separators=separators).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(header) - 1))
        header[at : at + data.draw(st.integers(0, 2))] = data.draw(MARKS)
    quick, alone = both_ways(bytes(header), len(content) - 8 - length)
    assert quick is None or quick == alone


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("metadata", [{}, {"__metadata__": {"config": '{"r": [8]}'}}])
@pytest.mark.parametrize("padding", [b"", b"   "])
def test_a_usual_header_needs_no_second_look(
    separators: tuple[str, str], metadata: dict[str, Any], padding: bytes
) -> None:
    tensors = {
        "a.0": entry(dtype="F32", shape=[1, 2], offsets=[0, 8]),
        "b": entry(dtype="BF16", shape=[], offsets=[8, 10]),
    }
    header = json.dumps({**metadata, **tensors}, separators=separators).encode() + padding
    quick, alone = both_ways(header, 10)
    assert quick is not None
    assert quick == alone


def test_what_the_safetensors_library_writes_is_usual() -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    np = pytest.importorskip("numpy")
    tensors = {
        "b.weight": np.zeros((2, 3), np.float16),
        "a.weight": np.zeros((3, 2), np.float16),
        "scale": np.zeros((), np.float64),
    }
    content = numpy.save(tensors, {"format": "pt"})
    length = int.from_bytes(content[:8], "little")
    quick, alone = both_ways(content[8 : 8 + length], len(content) - 8 - length)
    assert quick is not None
    assert quick == alone


def test_brackets_that_no_tensor_needs_take_no_memory() -> None:
    header = b'{"' + b"]" * 2_000_000 + b'":1}}'
    tracemalloc.start()
    try:
        assert _usual(header, 0) is None
        assert tracemalloc.get_traced_memory()[1] < 10 * len(header)
    finally:
        tracemalloc.stop()


TEXTS = st.sampled_from(['"a"', '"a:"', "1", '{"x": 1, "y": 2}', '{"x": 1, "x": 1}', "[{}]"])


@given(st.lists(st.tuples(st.sampled_from(["a", "b:", "c"]), TEXTS), max_size=5))
def test_a_name_that_occurs_twice_anywhere_is_refused(pairs: list[tuple[str, str]]) -> None:
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in pairs) + "}"
    names = [name for name, _ in pairs]
    twice = len(set(names)) < len(names) or any('"x": 1, "x"' in value for _, value in pairs)
    if pairs:
        with pytest.raises(UnreadableAdapterError) as caught:
            _parse("a", text.encode(), 0)
        assert ("occurs twice" in str(caught.value)) == twice
