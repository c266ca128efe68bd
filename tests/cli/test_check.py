"""``hotswap check`` and ``check_adapters``: each rule fires on its sample and is silent on a good fleet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hotswap
from hotswap.adapters import weights as weights_module
from hotswap.adapters.fit import BaseModel, belongs, fits
from hotswap.adapters.inspect import Inspector
from hotswap.adapters.plan import ModulePlan, SwapPlan
from hotswap.adapters.reader import SpecReader
from hotswap.adapters.rules import DOCUMENTATION, table
from hotswap.adapters.spec import AdapterSpec
from hotswap.cli.main import main
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import RULES, WARNINGS
from tests.support.adapter_files import lora_tensors, raw_safetensors, write_adapter
from tests.support.adapter_samples import SAMPLES, WEIGHTS, Sample, adapter, diffusers_file, paths

CODES = [code for code in RULES if code.startswith(("HSW0", "HSW1"))]
ROOT = Path(__file__).parents[2]


def base_of(modules: dict[str, tuple[int, int]]) -> BaseModel:
    places = {name: ModulePlan("linear", 1, *shape) for name, shape in modules.items()}
    return BaseModel("base", places, {f"{n}.weight": (b, a) for n, (a, b) in modules.items()})


def codes_of(sample: Sample, root: Path) -> set[str]:
    fleet = root / "fleet"
    fleet.mkdir()
    sample.write(fleet)
    options = dict(sample.options)
    if "plan" in options:
        options["plan"] = hotswap.plan([write_adapter(root / "plan", **options["plan"])])
    found = {f.code for f in hotswap.check_adapters(paths(fleet), **options)}
    if sample.base is not None:
        found |= {f.code for f in belongs(base_of(sample.base), AdapterSpec.read(paths(fleet)[0]))}
    return found


@pytest.mark.parametrize("code", SAMPLES)
def test_a_sample_is_found_by_its_code_alone(code: str, tmp_path: Path) -> None:
    assert codes_of(SAMPLES[code], tmp_path) == {code}


def test_a_good_fleet_has_no_findings(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    for rank in (2, 4):
        adapter(rank=rank)(fleet / str(rank))
        (fleet / str(rank) / "a").rename(fleet / f"r{rank}")
        (fleet / str(rank)).rmdir()
    plan = hotswap.plan(paths(fleet))
    assert hotswap.check_adapters(paths(fleet), plan=plan, weights=True) == []
    for path in paths(fleet):
        assert belongs(base_of({"q_proj": (32, 16)}), AdapterSpec.read(path)) == ()


def test_a_file_that_changes_while_it_is_read_is_a_finding(tmp_path: Path) -> None:
    adapter()(tmp_path)
    file = tmp_path / "a" / WEIGHTS

    def read(change: bytes) -> None:
        with SpecReader().open(str(tmp_path / "a")):
            file.write_bytes(file.read_bytes() + change)
            os.utime(file, ns=(1, 1))

    with pytest.raises(UnreadableAdapterError) as caught:
        read(b"x")
    assert [finding.code for finding in caught.value.findings] == ["HSW009"]


def test_a_file_that_shrinks_below_its_data_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter()(tmp_path)
    file = tmp_path / "a" / WEIGHTS
    whole = weights_module.value_findings

    def shrink_first(*arguments: Any) -> Any:
        os.truncate(file, file.stat().st_size - 8)
        return whole(*arguments)

    monkeypatch.setattr("hotswap.adapters.inspect.value_findings", shrink_first)
    found = Inspector(weights=True)(str(tmp_path / "a"))
    assert [finding.code for finding in found.findings] == ["HSW009"]


def test_registry_documentation_samples_and_changelog_agree() -> None:
    assert list(DOCUMENTATION) == CODES
    assert {*SAMPLES, "HSW009"} == set(CODES)
    changelog = ROOT / "CHANGELOG.md"
    if changelog.exists():
        spans = re.findall(r"HSW(\d{3}) to HSW(\d{3})", changelog.read_text(encoding="utf-8"))
        named = {f"HSW{n:03}" for a, b in spans for n in range(int(a), int(b) + 1)}
        assert set(CODES) <= named


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documentation is not here")
def test_the_table_in_the_documentation_is_the_registry() -> None:
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- rules: [^\n]*-->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert shown == table()


@pytest.mark.parametrize("code", CODES)
def test_explain_prints_why_a_bad_and_a_good_example(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", code]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{code} {RULES[code]}\n")
    assert "\nBad:\n    " in out
    assert "\nGood:\n    " in out


# the command


def test_errors_exit_with_one_and_warnings_with_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAMPLES["HSW111"].write(tmp_path)
    assert main(["check", str(tmp_path / "a")]) == 0
    out, err = capsys.readouterr()
    assert "HSW111 pattern-matches-nothing (warning)" in out
    assert err == "1 adapter, no errors, 1 warning\n"
    assert main(["check", str(tmp_path / "a"), "--strict"]) == 1
    assert main(["check", str(tmp_path / "a"), "--strict", "--ignore", "HSW111"]) == 0
    assert main(["check", str(tmp_path / "none")]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "xml"],
        ["--select", "HSW999"],
        ["--plan", "nowhere.json"],
        ["-j", "-1"],
        ["--base", "nowhere"],
    ],
)
def test_wrong_usage_exits_with_two(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_adapter(tmp_path / "a")
    assert main(["check", str(folder), *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_names_every_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(rank=4)(tmp_path)
    write_adapter(tmp_path / "b", config={"r": 3})
    assert main(["check", str(tmp_path / "*")]) == 1
    out = capsys.readouterr().out
    assert re.search(r"a +4 +1 +768 bytes +fits\n", out)
    assert re.search(r"b +- +- +1.5 KiB +HSW104\n", out)


@pytest.mark.parametrize("form", ["json", "github", "sarif"])
def test_formats_carry_the_severity(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAMPLES["HSW111"].write(tmp_path)
    assert main(["check", str(tmp_path / "a"), "--format", form]) == 0
    out = capsys.readouterr().out
    if form == "json":
        assert json.loads(out)[0]["severity"] == "warning"
    elif form == "github":
        assert out.startswith("::warning file=")
    else:
        assert json.loads(out)["runs"][0]["results"][0]["level"] == "warning"


def test_settings_come_from_pyproject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter()(tmp_path)
    hotswap.plan([write_adapter(tmp_path / "small", rank=2)]).save(tmp_path / "plan.json")
    (tmp_path / "pyproject.toml").write_text('[tool.hotswap]\nplan = "plan.json"\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert main(["check", "../a", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["code"] == "HSW105"
    (tmp_path / "pyproject.toml").write_text(
        '[tool.hotswap]\nplan = "plan.json"\nignore = ["rank-above-plan"]\n'
    )
    assert main(["check", "../a"]) == 0
    for wrong in ("ignroe = []", "ignore = 1", "plan = 1"):
        (tmp_path / "pyproject.toml").write_text(f"[tool.hotswap]\n{wrong}\n")
        assert main(["check", "../a"]) == 2


def test_processes_find_the_same(tmp_path: Path) -> None:
    fleet = [write_adapter(tmp_path / f"{n:03}", rank=1 + n % 3) for n in range(70)]
    write_adapter(tmp_path / "050", config={"r": 7})
    one = hotswap.check_adapters(fleet, ignore=["HSW114"])
    assert "HSW104" in {finding.code for finding in one}
    assert hotswap.check_adapters(fleet, ignore=["HSW114"], jobs=2) == one
    with pytest.raises(ValueError, match="jobs is 0"):
        hotswap.check_adapters(fleet, jobs=0)


def test_a_process_that_ends_is_one_sentence(tmp_path: Path) -> None:
    fleet = [str(write_adapter(tmp_path / f"{n:03}")) for n in range(65)]
    script = tmp_path / "script.py"  # without its guard every process would start processes
    script.write_text(f"import hotswap\nhotswap.check_adapters({fleet}, jobs=2)\n")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert 'below if __name__ == "__main__"' in done.stderr


def test_checking_loads_no_torch(tmp_path: Path) -> None:
    adapter()(tmp_path)
    code = (
        "import sys; from hotswap.cli.main import main\n"
        f"main(['check', {str(tmp_path / 'a')!r}, '--weights'])\n"
        "sys.exit(bool({'torch', 'peft', 'transformers', 'huggingface_hub', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_empty_fleet_has_no_findings() -> None:
    assert hotswap.check_adapters([]) == []


# other formats


def test_a_weights_file_stands_for_its_folder(tmp_path: Path) -> None:
    adapter(config={"r": 3})(tmp_path)
    found = hotswap.check_adapters(tmp_path / "a" / WEIGHTS)
    assert [finding.code for finding in found] == ["HSW104"]


def test_files_of_diffusers_are_read_with_and_without_metadata(tmp_path: Path) -> None:
    tensors = {
        f"transformer.{name.removeprefix('base_model.model.')}": info
        for name, info in lora_tensors({"to_q": (32, 16), "to_k": (32, 16)}, rank=4).items()
    }
    told = {"transformer.r": 4, "transformer.lora_alpha": 2}
    file = tmp_path / "a" / "pytorch_lora_weights.safetensors"
    spec = AdapterSpec.read(diffusers_file(file, tensors, told).parent)
    assert (spec.modules["to_q"].rank, spec.modules["to_q"].alpha) == (4, 2)
    assert AdapterSpec.read(diffusers_file(file, tensors, None)).modules["to_q"].alpha == 4
    both = {**tensors, "text_encoder.k.lora_A.weight": ("F32", (2, 4))}
    both["text_encoder.k.lora_B.weight"] = ("F32", (4, 2))
    spec = AdapterSpec.read(diffusers_file(file, both, None))
    assert {name: module.rank for name, module in spec.modules.items()} == {
        "transformer.to_q": 4,
        "transformer.to_k": 4,
        "text_encoder.k": 2,
    }
    one = AdapterSpec.read(diffusers_file(tmp_path / "b" / file.name, tensors, told))
    assert set(hotswap.plan([one]).modules) == {"to_q", "to_k"}
    together = hotswap.plan([one, spec])
    assert set(together.modules) == set(spec.modules)
    assert together.conflicts == fits(together, one) == fits(together, spec) == ()
    wrong = hotswap.check_adapters(diffusers_file(file, tensors, {"transformer.r": 5}))
    assert {finding.code for finding in wrong} == {"HSW104"}


def test_old_files_of_diffusers_are_refused_by_name(tmp_path: Path) -> None:
    file = diffusers_file(tmp_path / "old.safetensors", {"lora_unet_x.down": ("F32", (2,))}, None)
    (found,) = hotswap.check_adapters(file)
    assert (found.code, "names other than PEFT's" in found.message) == ("HSW005", True)


# strangers


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_devices_are_not_read(target: str, name: str, tmp_path: Path) -> None:
    adapter()(tmp_path)
    (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / name).symlink_to(target)
    found = {finding.code for finding in hotswap.check_adapters(tmp_path / "a")}
    assert found == {"HSW007"}


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


def test_digests_depend_on_the_bytes(tmp_path: Path) -> None:
    adapter()(tmp_path)
    write_adapter(tmp_path / "b")  # the same header and size, other bytes
    assert hotswap.check_adapters([tmp_path / "a", tmp_path / "b"]) == []


def test_a_plan_is_saved_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = hotswap.plan([write_adapter(tmp_path / "a")])
    plan.save(tmp_path / "plan.json")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        hotswap.plan([write_adapter(tmp_path / "b", rank=2)]).save(tmp_path / "plan.json")
    assert SwapPlan.read(tmp_path / "plan.json") == plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "plan.json"]


def test_warnings_are_codes() -> None:
    assert set(RULES) >= WARNINGS


def test_the_files_of_a_folder_are_one_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter()(tmp_path)
    files = [str(path) for path in sorted((tmp_path / "a").iterdir())]
    assert len(files) == 2  # as pre-commit passes them
    assert main(["check", *files]) == 0
    assert capsys.readouterr().err == "1 adapter, no errors\n"
    monkeypatch.chdir(tmp_path / "a")
    assert main(["check", WEIGHTS]) == 0
