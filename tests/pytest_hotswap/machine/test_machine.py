"""State machines find a fault, shrink it, and leave a script that reproduces it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn

from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap import ReferenceSubject, run_hotswap_machine
from pytest_hotswap.machine.steps import LawBrokenError, Steps
from pytest_hotswap.subjects.located import load_class
from tests.support import warm
from tests.support.models import TOKENS, Around, micro, seeded, write_adapter

FEW = settings(max_examples=6, stateful_step_count=6, derandomize=True, database=None)
SUBJECT = """
import torch
from torch import nn
from hotswap.engine.layout.slots import lora_layers
from pytest_hotswap import ReferenceSubject


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, values):
        return self.second(torch.tanh(self.first(values)))


class Sound(ReferenceSubject):
    adapters = "adapters/*"

    def base_model(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Two().eval()

    def inputs(self):
        return {"values": torch.linspace(-1, 1, 12).reshape(2, 6)}


class AlphaKept(Sound):
    def swap(self, model, adapter):
        old = [float(layer.scaling["default"]) for layer in lora_layers(model).values()]
        super().swap(model, adapter)
        if adapter is not None:
            for layer, value in zip(lora_layers(model).values(), old):
                layer.scaling["default"] = value


class SavesNoWeights(Sound):
    def save(self, model, folder):
        super().save(model, folder)
        (folder / "adapter_model.safetensors").unlink()


class PreparesLate(Sound):
    def prepare(self, model, plan):
        import hotswap
        hotswap.prepare(model, plan=plan, check_compiled="ignore")
"""


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type[ReferenceSubject]]:
    folder = tmp_path_factory.mktemp("machine")
    path = folder / "machine_deployed.py"
    path.write_text(SUBJECT)
    names = ("Sound", "AlphaKept", "PreparesLate", "SavesNoWeights")
    found = {name: load_class(f"machine_deployed.py:{name}", folder) for name in names}
    write_adapter(
        folder / "adapters" / "one",
        found["Sound"]().base_model(),
        r=3,
        lora_alpha=6,
        target_modules=["first", "second"],
    )
    return found


def test_the_engine_survives_and_the_machine_says_how_far_it_is(
    subjects: dict[str, type[ReferenceSubject]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hotswap.cli.terminal.EVERY", 0.0)
    run_hotswap_machine(subjects["Sound"](), settings=FEW)
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("state machine, swaps: example 6 of 6, ")]
    assert re.search(r", \d+ steps, \d+ s, [\d.]+ steps a second, now: \w+$", told[-1])
    assert any("about" in line and "left" in line for line in lines)
    assert any(line.startswith("state machine, order of set-up: example 1 of 6") for line in lines)


@pytest.mark.parametrize(
    ("name", "law", "steps"),
    [("AlphaKept", "swap-equals-load", 1), ("PreparesLate", "prepare-before-compile", 3)],
)
def test_a_fault_is_shrunk_to_a_script_that_reproduces_it(
    subjects: dict[str, type[ReferenceSubject]], tmp_path: Path, name: str, law: str, steps: int
) -> None:
    with pytest.raises(LawBrokenError) as caught:
        run_hotswap_machine(subjects[name](), settings=settings(FEW, max_examples=20))
    assert caught.value.law == law
    script = caught.value.hotswap_script  # type: ignore[attr-defined]
    assert script in "".join(caught.value.__notes__)
    assert sum(line.startswith("steps.") for line in script.splitlines()) == steps
    path = tmp_path / "reproduce.py"
    path.write_text(
        f"{script}\n".replace("# ", "import sys\nsys.modules['pytest'] = None\n# ", 1)
        + "raise SystemExit('nothing failed')\n"
    )
    code = f"import sys; sys.modules['hypothesis'] = None\n{path.read_text()}"
    done = warm.run([sys.executable, "-c", code])
    assert done.returncode == 1
    assert f"LawBrokenError: {law}" in done.stderr


def test_a_saved_folder_that_cannot_be_loaded_is_a_broken_law(
    subjects: dict[str, type[ReferenceSubject]],
) -> None:
    steps = Steps(subjects["SavesNoWeights"]())
    try:
        with pytest.raises(
            LawBrokenError, match=r"what was saved of one cannot be loaded"
        ) as caught:
            steps.save_and_reload()
    finally:
        steps.close()
    assert caught.value.law == "knobs-follow"


def test_micro_models_of_every_kind_survive_swaps(tmp_path: Path) -> None:
    base = micro(groups=2)
    write_adapter(tmp_path / "one", base, r=4, lora_alpha=6)

    class Micro(ReferenceSubject):
        def base_model(self) -> object:
            return micro(groups=2)

        def inputs(self) -> dict[str, object]:
            return {"tokens": TOKENS}

    subject = Micro(adapters=[str(tmp_path / "*")])
    run_hotswap_machine(subject, settings=FEW)


class Given(ReferenceSubject):
    """A subject with arguments of its own."""

    def __init__(self, folder: Path, share: float = 1.0) -> None:
        super().__init__(adapters=[str(folder / "*")])
        self.share = share

    def base_model(self) -> Any:
        return seeded(lambda: Around(nn.Linear(6, 5)))

    def inputs(self) -> dict[str, Any]:
        return {"value": torch.linspace(-1, 1, 12).reshape(2, 6)}

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(model, adapter)
        for layer in lora_layers(model).values():
            layer.scaling["default"] *= self.share


def test_a_script_repeats_arguments_and_local_classes(tmp_path: Path) -> None:
    folder, factor = tmp_path / "fleet", 3.0
    write_adapter(folder / "one", Given(folder).base_model(), r=2, target_modules=["layer"])

    class Local(Given):
        def swap(self, model: Any, adapter: Path | None) -> None:
            super().swap(model, adapter)
            for layer in lora_layers(model).values():
                layer.scaling["default"] *= factor

    for subject in (Given(folder, share=2.0), Local(folder)):
        with pytest.raises(LawBrokenError) as caught:
            run_hotswap_machine(subject, settings=settings(FEW, max_examples=20))
        script: str = caught.value.hotswap_script  # type: ignore[attr-defined]
        done = warm.run([sys.executable, "-c", f"{script}\nraise SystemExit('nothing failed')"])
        assert done.returncode == 1
        assert f"LawBrokenError: {caught.value.law}" in done.stderr, script


def test_the_machine_knows_the_companions(tmp_path: Path) -> None:
    write_adapter(tmp_path / "one", Given(tmp_path).base_model(), r=2, target_modules=["layer"])
    steps = Steps(Given(tmp_path))
    try:
        known = steps.companions()
        assert known
        for adapter in known:
            steps.swap(adapter)
    finally:
        steps.close()
