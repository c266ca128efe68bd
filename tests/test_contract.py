"""The contract passes on hotswap's engine and fails on faulty ones, each by the law it breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hotswap.report.laws import LAWS
from pytest_hotswap import HotswapContract

FAULTS = """
import torch
from hotswap.engine.layers import lora_layers, slots
from pytest_hotswap import PeftSubject, ReferenceSubject
import hotswap


class StaleRows(ReferenceSubject):
    def swap(self, model, adapter):
        layers = lora_layers(model, "default")
        old = {name: [s.tensor.detach().clone() for s in slots(l, "default")] for name, l in layers.items()}
        super().swap(model, adapter)
        with torch.no_grad():
            for name, layer in layers.items():
                for slot, tensor in zip(slots(layer, "default"), old[name]):
                    rank = layer.scaling.own["default"].rank
                    if slot.axis == 0 and rank:
                        slot.tensor[rank:] = tensor[rank:]
                    elif slot.axis == 1 and rank:
                        slot.tensor[:, rank:] = tensor[:, rank:]


class AlphaOverTargetRank(ReferenceSubject):
    def swap(self, model, adapter):
        super().swap(model, adapter)
        for layer in lora_layers(model, "default").values():
            layer.scaling["default"] = layer.lora_alpha["default"] / 16


class NotAtomic(ReferenceSubject):
    def swap(self, model, adapter):
        layer = next(iter(lora_layers(model, "default").values()))
        with torch.no_grad():
            slots(layer, "default")[0].tensor.zero_()
        super().swap(model, adapter)


class NeverCompiles(ReferenceSubject):
    def compile(self, model):
        return model


class MovesStorage(ReferenceSubject):
    def swap(self, model, adapter):
        super().swap(model, adapter)
        for layer in lora_layers(model, "default").values():
            for slot in slots(layer, "default"):
                slot.tensor.data = slot.tensor.data.clone()
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    subprocess.run(
        [sys.executable, "-m", "hotswap.cli.demo", str(folder)], check=True, capture_output=True
    )
    (folder / "faults.py").write_text(FAULTS)
    return folder


def contract(fleet: Path, subject: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    report = fleet / f"{subject.rpartition(':')[2]}.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs"]
    command += ["pytest_hotswap.suite", "--hotswap-subject", subject, "--hotswap-base", "base"]
    command += ["--hotswap-adapters", "adapters/*", "--hotswap-report", str(report), *options]
    done = subprocess.run(command, cwd=fleet, capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return done.returncode, [line for line in lines if "nodeid" in line]


def failed(records: list[dict[str, Any]]) -> dict[str, str]:
    return {r["law"]: r["message"] for r in records if r["outcome"] == "failed"}


def test_every_law_has_a_test_and_a_control() -> None:
    names = {name.removeprefix("test_").replace("_", "-") for name in dir(HotswapContract)}
    assert {law for law in LAWS if law not in names} == set()
    assert {law for law in LAWS if f"control-of-{law}" not in names} == set()


@pytest.mark.wheel
def test_hotswaps_own_engine_obeys_every_law(fleet: Path) -> None:
    code, records = contract(fleet, "pytest_hotswap:ReferenceSubject")
    assert failed(records) == {}
    assert {r["outcome"] for r in records} == {"passed"}
    assert code == 0
    assert {r["law"] for r in records} == set(LAWS)


@pytest.mark.parametrize(
    ("fault", "law", "named"),
    [
        ("StaleRows", "swap-forgets", "lora_"),
        ("AlphaOverTargetRank", "swap-equals-load", "self_attn"),
        ("NotAtomic", "swap-atomic", "lora_A"),
        ("NeverCompiles", "zero-recompiles", "no compiled code ran"),
        ("MovesStorage", "swap-in-place", "lora_"),
    ],
)
def test_a_faulty_engine_fails_by_its_law(fleet: Path, fault: str, law: str, named: str) -> None:
    selected = law.replace("-", "_")
    code, records = contract(fleet, f"faults.py:{fault}", "-k", f"test_{selected}")
    assert code == 1
    assert named in failed(records)[law]


@pytest.mark.wheel
def test_pefts_own_functions_are_neither_isolated_nor_atomic(fleet: Path) -> None:
    code, records = contract(fleet, "pytest_hotswap:PeftSubject")
    found = failed(records)
    assert code == 1
    assert "default2" in found["swap-isolated"]
    atomic = [r["message"] for r in records if r["law"] == "swap-atomic" and r["message"]]
    accepted = [m for m in atomic if "with a wrong shape was accepted" in m]
    assert accepted
    assert "lora_" in accepted[0]
    assert {r["message"] for r in records if r["outcome"] == "skipped"} == {
        "not applicable: PEFT cannot swap to the base model"
    }


def test_no_deployment_is_a_usage_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--pyargs", "pytest_hotswap.suite"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (2, 4)
    assert "--hotswap-base" in done.stdout + done.stderr
