"""Steps: a deployment driven one step at a time, with the laws checked after each.

Neither Hypothesis nor pytest is needed: the script of a failure calls the same steps.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hotswap
from hotswap.checks.equivalence import compare
from hotswap.checks.snapshot import Snapshot
from pytest_hotswap.adapters.derived import break_adapter
from pytest_hotswap.adapters.described import AdapterDescription, write_adapter
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.subjects.base import Subject


class LawBrokenError(AssertionError):
    """A step broke a law."""

    def __init__(self, law: str, text: str) -> None:
        self.law = law
        super().__init__(f"{law}: {text}")


class Steps:
    """A compiled deployment; ``error`` is the largest seen so far, as a share of the tolerance."""

    def __init__(self, subject: Subject) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hotswap-steps-")
        self.subject = subject
        self.deployment = Deployment(subject, Path(self._folder.name))
        self.task_type = self.deployment.specs[self.deployment.first].config.get("task_type")
        self._written: dict[AdapterDescription, Path] = {}
        self._expected: dict[tuple[Path | None, float, int], Any] = {}
        self._recompiled = False
        self.start()

    def start(self) -> None:
        """Go back to the compiled model as it was after its first call, bit for bit.

        After a recompile it is compiled anew: torch would have code for what has changed, and the same
        steps would recompile nothing.
        """
        if self._recompiled:
            self.deployment.close()
            self._recompiled = False
        self.deployment.snapshot.restore()
        self.adapter: Path | None = self.deployment.first
        self.scale = 1.0
        self.error = 0.0

    def close(self) -> None:
        """Remove the adapters that were written, and forget what was compiled."""
        self.deployment.close()
        self._folder.cleanup()

    def folder_of(self, adapter: AdapterDescription) -> Path:
        """The folder of a described adapter, written once."""
        if adapter not in self._written:
            folder = self.deployment.new_folder()
            write_adapter(folder, adapter, self.deployment.plan, task_type=self.task_type)
            self._written[adapter] = folder
        return self._written[adapter]

    # ---- steps -------------------------------------------------------------------------------

    def run(self) -> None:
        """Call the model."""
        self._check("swap-equals-load")

    def swap(self, adapter: AdapterDescription) -> None:
        """Swap an adapter in."""
        self._swap(self.folder_of(adapter))
        self._check("swap-equals-load")

    def swap_to_none(self) -> None:
        """Swap to the base model."""
        self._swap(None)
        self._check("swap-has-effect")

    def swap_broken(self, adapter: AdapterDescription, defect: str) -> None:
        """Try an adapter with a defect, which must be refused without a trace."""
        deployment = self.deployment
        source, folder = self.folder_of(adapter), deployment.new_folder()
        bad = break_adapter(source, folder, defect, room=deployment.plan.ranks)
        before = Snapshot.take(*deployment.subject.models(deployment.compiled))
        try:
            deployment.subject.swap(deployment.compiled, bad)
        except Exception:  # whatever the subject raises is a refusal
            refused = True
        else:
            refused = False
        if not refused:
            raise LawBrokenError("swap-atomic", f"an adapter with a {defect} was accepted")
        if changes := before.changes():
            raise LawBrokenError("swap-atomic", f"refused ({defect}), but {changes[0]}")
        self._check("swap-atomic")

    def set_scale(self, scale: float) -> None:
        """Scale the adapter in place."""
        self.deployment.subject.set_scale(self.deployment.compiled, scale)
        self.scale = scale if self.adapter is not None else 1.0
        self._check("knobs-follow")

    def disable_and_enable(self) -> None:
        """Call the model while the adapter is disabled, and after that; both without torch.compile."""
        subject, compiled = self.subject, self.deployment.compiled
        models = subject.models(compiled)
        flags = [(p, p.requires_grad) for model in models for p in model.parameters()]
        with subject.disabled(compiled):
            self._compare("knobs-follow", None, 1.0, "disabled", eager=True)
        for parameter, flag in flags:  # PEFT makes them trainable, which recompiles
            parameter.requires_grad_(flag)
        self._check("knobs-follow")

    def save_and_reload(self) -> None:
        """Save the adapter in place; a fresh load of what was saved must compute the same."""
        if self.adapter is None:
            return
        deployment = self.deployment
        folder = deployment.new_folder()
        deployment.subject.save(deployment.compiled, folder)
        found = compare(
            deployment.run(deployment.fresh(folder)), self._oracle(self.adapter, 1.0, 1)
        )
        if not found.equal:
            raise LawBrokenError(
                "knobs-follow", f"the saved adapter reloads differently: {found.detail}"
            )
        self._check("knobs-follow")

    def add_adapter(self, adapter: AdapterDescription) -> None:
        """Load another adapter beside the one that is swapped, look at both, and take it away again."""
        deployment, name = self.deployment, "added"
        models = self.subject.models(deployment.compiled)
        before = Snapshot.take(*models)
        try:
            self.subject.add(deployment.compiled, self.folder_of(adapter), name)
            self._compare("swap-isolated", self.adapter, self.scale, "beside another", eager=True)
            if changes := [c for c in before.changes(storage=False) if "changed its values" in c]:
                raise LawBrokenError("swap-isolated", changes[0])
        finally:
            self.subject.remove(deployment.compiled, name)
            before.restore()
        self._check("swap-isolated")

    def batch(self, copies: int) -> None:
        """Call the model on a batch that is ``copies`` times as large."""
        self._compare("swap-equals-load", self.adapter, self.scale, "on a new batch size", copies)

    # ---- what must hold after each -----------------------------------------------------------

    def _swap(self, adapter: Path | None) -> None:
        deployment = self.deployment
        deployment.run()  # what other steps made necessary is compiled before the swap is watched
        before = Snapshot.take(*deployment.subject.models(deployment.compiled))
        with hotswap.watch_compiles() as log:
            deployment.subject.swap(deployment.compiled, adapter)
            deployment.run()
        self.adapter, self.scale = adapter, 1.0
        if moved := before.changes(values=False):
            raise LawBrokenError("swap-in-place", moved[0])
        verdict = log.verdict()
        if verdict.outcome != "passed":
            self._recompiled = True
            raise LawBrokenError("zero-recompiles", "; ".join(verdict.reasons))

    def _check(self, law: str) -> None:
        self._compare(law, self.adapter, self.scale, "afterwards")
        own = self.deployment.subject.adapter_name
        foreign = [
            change
            for change in self.deployment.snapshot.changes(storage=False)
            if change.endswith("changed its values") and f".{own}" not in change
        ]
        if foreign:
            raise LawBrokenError("swap-isolated", foreign[0])

    def _compare(
        self,
        law: str,
        adapter: Path | None,
        scale: float,
        when: str,
        copies: int = 1,
        *,
        eager: bool = False,
    ) -> None:
        deployment = self.deployment
        model = self.subject.models(deployment.compiled)[0] if eager else deployment.compiled
        outputs = self.subject.run(model, _batch(deployment.inputs, copies))
        found = compare(outputs, self._oracle(adapter, scale, copies))
        if found.tolerance:
            self.error = max(self.error, found.max_error / found.tolerance)
        if not found.equal:
            name = "the base model" if adapter is None else "a fresh load"
            raise LawBrokenError(law, f"{when} the outputs are not those of {name}: {found.detail}")

    def _oracle(self, adapter: Path | None, scale: float, copies: int) -> Any:
        key = (adapter, scale, copies)
        if key not in self._expected:
            deployment = self.deployment
            model = deployment.base if adapter is None else deployment.fresh(adapter, scale)
            self._expected[key] = deployment.subject.run(model, _batch(deployment.inputs, copies))
        return self._expected[key]


class OrderSteps:
    """Load, prepare, compile and swap in any order, on one linear layer; the rest is the subject's."""

    adapters = (AdapterDescription(1, 2, seed=1), AdapterDescription(2, 1, seed=2))

    def __init__(self, subject: Subject) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hotswap-order-")
        self.subject = copy.copy(subject)
        here: Any = self.subject
        here.base_model, here.inputs = _OneLayer.new, _OneLayer.inputs
        envelope = hotswap.SwapPlan({"layer": _OneLayer.envelope()})
        self.paths = [
            write_adapter(Path(self._folder.name) / str(index), adapter, envelope)
            for index, adapter in enumerate(self.adapters)
        ]
        here.adapter_paths = lambda: self.paths
        self.oracle = Deployment(self.subject, Path(self._folder.name))
        self.start()

    def start(self) -> None:
        """Begin without a model."""
        torch._dynamo.reset()
        self.model: Any = None
        self.prepared = self.compiled = False
        self.adapter = 0

    def close(self) -> None:
        """Remove the adapters that were written, and forget what was compiled."""
        torch._dynamo.reset()
        self._folder.cleanup()

    def load(self) -> None:
        """Load the base model with the first adapter."""
        self.start()
        self.model = self.subject.load(self.subject.base_model(), self.paths[0])
        self._check("swap-equals-load")

    def prepare(self) -> None:
        """Prepare the model; if it is compiled that must be refused."""
        try:
            self.subject.prepare(self.model, self.oracle.plan)
        except Exception:
            if not self.compiled:
                raise
        else:
            if self.compiled:
                raise LawBrokenError(
                    "prepare-before-compile", "prepare() accepted a compiled model"
                )
            self.prepared = True
        self._check("preparation-preserves")

    def compile(self) -> None:
        """Compile the model and call it."""
        if not self.compiled:
            self.model, self.compiled = self.subject.compile(self.model), True
            self._check("swap-equals-load")

    def swap(self, index: int) -> None:
        """Swap an adapter in; an unprepared model may refuse, but must not compute anything else."""
        with hotswap.watch_compiles() as log:
            try:
                self.subject.swap(self.model, self.paths[index])
            except Exception:
                if self.prepared:
                    raise
            else:
                self.adapter = index
            self._check("swap-equals-load")
        if self.prepared and self.compiled and (found := log.recompiles):
            raise LawBrokenError("zero-recompiles", str(found[0]))

    def _check(self, law: str) -> None:
        found = compare(
            self.subject.run(self.model, self.oracle.inputs),
            self.oracle.expected(self.paths[self.adapter]),
        )
        if not found.equal:
            raise LawBrokenError(law, f"the outputs are not those of a fresh load: {found.detail}")


class _OneLayer(nn.Module):
    """The smallest model that can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.layer(values)
        return found

    @staticmethod
    def new() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return _OneLayer().eval()

    @staticmethod
    def inputs() -> dict[str, Tensor]:
        return {"values": torch.linspace(-1, 1, 8).reshape(2, 4)}

    @staticmethod
    def envelope() -> Any:
        from hotswap.adapters.plan import ModulePlan

        return ModulePlan("linear", 4, 4, 3)


def script(kind: type[Any], subject: Subject, lines: Iterable[str], error: BaseException) -> str:
    """Write the Python script that takes the same steps and sees the same law fail."""
    cls = type(subject)
    where = f"{Path(inspect.getfile(cls)).resolve()}:{cls.__qualname__}"
    arguments = "".join(
        f", {name}={value!r}" for name, value in getattr(subject, "given", {}).items()
    )
    return "\n".join(
        [
            f"# {' '.join(str(error).split())}",
            f"from pytest_hotswap.machine.steps import {kind.__name__}, subject_at",
            "from pytest_hotswap.adapters.described import AdapterDescription",
            "",
            f"steps = {kind.__name__}(subject_at({where!r}{arguments}))",
            *(f"steps.{line}" for line in lines),
            "",
        ]
    )


def subject_at(where: str, **given: Any) -> Subject:
    """Build the subject of a script: ``file.py:Class`` and its arguments."""
    path, _, name = where.rpartition(":")
    spec = importlib.util.spec_from_file_location("hotswap_reproduced", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    subject: Subject = found(**given)
    return subject


def _batch(inputs: Mapping[str, Any], copies: int) -> Mapping[str, Any]:
    if copies == 1:
        return inputs
    return {
        name: torch.cat([value] * copies) if isinstance(value, Tensor) and value.ndim else value
        for name, value in inputs.items()
    }
