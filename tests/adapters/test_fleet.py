"""A fleet judged together: each rule fires on its sample and is silent on a good fleet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hotswap
from hotswap.adapters.fit import BaseModel, belongs
from hotswap.adapters.inspect import Inspector
from hotswap.adapters.plan import ModulePlan
from hotswap.adapters.spec import AdapterSpec
from tests.support.adapter_files import write_adapter
from tests.support.adapter_samples import SAMPLES, Sample, adapter, paths


def base_of(modules: dict[str, tuple[int, int]]) -> BaseModel:
    places = {name: ModulePlan("linear", 1, *shape) for name, shape in modules.items()}
    parameters = {f"{n}.weight": (b, a) for n, (a, b) in modules.items()}
    return BaseModel("base", places, parameters, prefix="model", kind="Model")


def codes_of(sample: Sample, root: Path) -> set[str]:
    fleet = root / "fleet"
    fleet.mkdir()
    sample.write(fleet)
    options = dict(sample.options)
    if "plan" in options:
        options["plan"] = hotswap.plan([write_adapter(root / "plan", **options["plan"])])
    found = {f.code for f in hotswap.check_adapters(paths(fleet), **options)}
    if sample.base is not None:
        base = base_of(sample.base)
        found |= {f.code for f in Inspector(base=base)(paths(fleet)[0]).findings}
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


def test_an_empty_fleet_has_no_findings() -> None:
    assert hotswap.check_adapters([]) == []


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
