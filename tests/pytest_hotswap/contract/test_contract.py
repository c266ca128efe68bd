"""The contract passes on hotswap's engine and fails on faulty ones, each by the law it breaks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from hotswap.cli.verify.demo import ADAPTERS, write_demo
from hotswap.report.laws import LAWS
from pytest_hotswap import HotswapContract
from pytest_hotswap.subjects.located import load_class
from tests.support import warm
from tests.support.models import write_fleet

SOUND = """
import torch
from torch import nn
from pytest_hotswap import ReferenceSubject


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, hidden):
        return torch.sigmoid(self.q_proj(hidden)) * self.v_proj(hidden)


class Feedforward(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_proj = nn.Linear(32, 32)

    def forward(self, hidden):
        return self.down_proj(torch.tanh(hidden))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = Attention(), Feedforward()

    def forward(self, hidden):
        return hidden + self.mlp(self.self_attn(hidden))


class Micro(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Sound(ReferenceSubject):
    adapters = "adapters/*"

    def base_model(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Micro().eval()

    def inputs(self):
        return {"hidden": torch.linspace(-1, 1, 64).reshape(2, 32)}
"""
FAULTS = """
from hotswap.engine.layout.slots import lora_layers, slots
from micro_deployed import Sound as Engine


def layers(model):
    return lora_layers(model, "default").values()


class StaleRows(Engine):
    def swap(self, model, adapter):
        old = [[s.tensor.detach().clone() for s in slots(l, "default")] for l in layers(model)]
        super().swap(model, adapter)
        for layer, tensors in zip(layers(model), old):
            rank = layer.scaling.states["default"].rank
            for slot, tensor in zip(slots(layer, "default"), tensors):
                stale = slice(rank, None)
                where = (stale,) if slot.axis == 0 else (slice(None), stale)
                if rank:
                    slot.tensor.data[where] = tensor[where]


class AlphaOverTargetRank(Engine):
    def swap(self, model, adapter):
        super().swap(model, adapter)
        for layer in layers(model):
            layer.scaling["default"] = layer.lora_alpha["default"] / 16


class NotAtomic(Engine):
    def swap(self, model, adapter):
        slots(next(iter(layers(model))), "default")[0].tensor.data.zero_()
        super().swap(model, adapter)


class NeverCompiles(Engine):
    def compile(self, model):
        return model


class MovesStorage(Engine):
    def swap(self, model, adapter):
        super().swap(model, adapter)
        for layer in layers(model):
            for slot in slots(layer, "default"):
                slot.tensor.data = slot.tensor.data.clone()


class PreparesAllLayersButOne(Engine):
    def prepare(self, model, plan):
        super().prepare(model, plan)
        layer = list(layers(model))[-1]
        number = float(layer.scaling["default"])
        del layer.scaling
        layer.scaling = {"default": number}


class ChangesTheBase(Engine):
    def swap(self, model, adapter):
        super().swap(model, adapter)
        next(iter(layers(model))).base_layer.weight.data.mul_(1.5)
"""
COUNTED = """
import pathlib
from micro_deployed import Sound

class Counted(Sound):
    def swap(self, model, adapter):
        super().swap(model, adapter)
        with pathlib.Path("swaps").open("a") as file:
            file.write("x")
"""
FAULTY = {  # the law that each of them breaks, and what the message names
    "StaleRows": ("swap-forgets", "self_attn.q_proj.lora_"),
    "AlphaOverTargetRank": ("swap-equals-load", "self_attn.q_proj"),
    "NotAtomic": ("swap-atomic", "self_attn.q_proj.lora_A"),
    "NeverCompiles": ("zero-recompiles", "no compiled code ran"),
    "MovesStorage": ("swap-in-place", "self_attn.q_proj.lora_A"),
    "PreparesAllLayersButOne": ("preparation-covers", "layers.1.mlp.down_proj.scaling is a"),
    "ChangesTheBase": ("swap-isolated", "base_layer.weight changed its values"),
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "micro_deployed.py").write_text(SOUND)
    (folder / "faults.py").write_text(FAULTS)
    base = load_class("micro_deployed.py:Sound", folder)().base_model()
    write_fleet(folder / "adapters", base, ADAPTERS)
    return folder


def pytest_report(folder: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    report = folder / "report.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = warm.run([*command, "--hotswap-report", str(report)], cwd=folder)
    assert report.exists(), done.stdout + done.stderr
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    return done.returncode, [line for line in lines if "nodeid" in line]


@pytest.fixture(scope="module")
def faulty_run(fleet: Path) -> tuple[int, list[dict[str, Any]]]:
    """Every faulty engine on the law that it breaks, in one process."""
    classes = [
        f"class Test{fault}(HotswapContract):\n    subject = faults.{fault}\n" for fault in FAULTY
    ]
    lines = ["from pytest_hotswap import HotswapContract", "import faults", *classes]
    (fleet / "test_faults.py").write_text("\n".join(lines))
    tests = [
        f"(Test{fault} and test_{law.replace('-', '_')} and not any_swap_sequence)"
        for fault, (law, _) in FAULTY.items()
    ]
    return pytest_report(fleet, "test_faults.py", "-k", " or ".join(tests))


def failed(records: list[dict[str, Any]]) -> dict[str, str]:
    return {r["law"]: r["message"] for r in records if r["outcome"] == "failed"}


def test_every_law_has_a_test_and_a_control() -> None:
    names = {name.removeprefix("test_").replace("_", "-") for name in dir(HotswapContract)}
    assert {law for law in LAWS if law not in names} == set()
    assert {law for law in LAWS if f"control-of-{law}" not in names} == set()


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_engine_fails_by_its_law(
    faulty_run: tuple[int, list[dict[str, Any]]], fault: str
) -> None:
    code, records = faulty_run
    law, named = FAULTY[fault]
    own = [r for r in records if f"Test{fault}::" in r["nodeid"]]
    assert code == 1
    assert {r["law"] for r in own} == {law}
    assert named in failed(own)[law]


@pytest.mark.wheel
def test_pefts_own_functions_are_neither_isolated_nor_atomic(tmp_path: Path) -> None:
    write_demo(tmp_path, layers=1)
    options = ["--hotswap-subject", "pytest_hotswap:PeftSubject", "--hotswap-base", "base"]
    suite = ["--pyargs", "pytest_hotswap.suite", "--hotswap-adapters", "adapters/*"]
    code, records = pytest_report(tmp_path, *suite, *options)
    found = failed(records)
    assert code == 1
    assert "default2" in found["swap-isolated"]
    atomic = [r["message"] for r in records if r["law"] == "swap-atomic" and r["message"]]
    accepted = [m for m in atomic if "with a wrong shape was accepted" in m]
    assert accepted
    assert "lora_" in accepted[0]
    assert {r["message"] for r in records if r["outcome"] == "skipped"} == {
        "not applicable: PEFT cannot swap to the base model",
        "not applicable: no adapter was refused",
        "not run: CUDA graphs need a GPU, the model is on cpu",
        "not run: the knobs do not follow a swap that goes well either",
        "not applicable: the subject does not promise that swaps and calls may run in several threads "
        "at once (thread_safe)",
    }


def test_the_swaps_that_are_reported_are_the_swaps_that_were_made(fleet: Path) -> None:
    (fleet / "counted.py").write_text(COUNTED)
    words = ["--pyargs", "pytest_hotswap.suite", "--hotswap-subject", "counted.py:Counted"]
    selected = "test_zero_recompiles and not any_swap_sequence and not cuda_graphs"
    code, records = pytest_report(fleet, *words, "-k", selected)
    assert code == 0
    assert sum(r["swaps"] for r in records) == len((fleet / "swaps").read_text())
    assert sum(r["recompiles"] for r in records) == 0


def test_twins_in_the_fleet_are_no_failure(fleet: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(fleet / "adapters" / "terse", fleet / "twins" / name)
    words = ["--pyargs", "pytest_hotswap.suite", "--hotswap-subject", "micro_deployed.py:Sound"]
    selected = "control_of_swap_equals_load or control_of_swap_forgets or test_swap_forgets"
    code, records = pytest_report(fleet, *words, "--hotswap-adapters=twins/*", "-k", selected)
    assert (code, failed(records), len(records)) == (0, {}, 8)


@pytest.mark.parametrize("step", ["prepare", "compile", "run"])
def test_what_keeps_a_deployment_from_coming_up_is_one_failure(fleet: Path, step: str) -> None:
    (fleet / f"broken_{step}.py").write_text(
        "from micro_deployed import Sound\n\nclass Broken(Sound):\n"
        f"    def {step}(self, *_):\n        raise OSError('no room for it')\n"
    )
    words = ["--pyargs", "pytest_hotswap.suite", "--hotswap-subject", f"broken_{step}.py:Broken"]
    code, records = pytest_report(fleet, *words)
    assert code == 1
    (told,) = (r["message"] for r in records if r["outcome"] == "failed")
    assert told.startswith("Broken ")
    assert "OSError: no room for it" in told
    assert {r["message"] for r in records if r["outcome"] == "skipped"} <= {
        f"not run: {told}",
        "not applicable: no adapter was refused",
    }
    assert {r["outcome"] for r in records} == {"failed", "skipped"}


def test_no_deployment_is_a_usage_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--pyargs", "pytest_hotswap.suite"]
    done = warm.run(command, cwd=tmp_path)
    assert done.returncode in (2, 4)
    assert "--hotswap-base" in done.stdout + done.stderr
