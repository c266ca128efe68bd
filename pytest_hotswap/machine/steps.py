"""Steps: a deployment driven one step at a time, with the laws checked after each.

Neither Hypothesis nor pytest is needed: the script of a failure calls the same steps.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import hotswap
from pytest_hotswap.adapters.companions import Companions, companions_of
from pytest_hotswap.adapters.derived import break_adapter
from pytest_hotswap.adapters.described import AdapterDescription, write_adapter
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.placed import base_tensors, in_base
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
        self._recompiled = True  # by the swaps that show whether restoring disturbs it
        self.start()

    def start(self) -> None:
        """Go back to the compiled model as it was after its first call, bit for bit.

        After a recompile it is compiled anew: torch would have code for what has changed, and the same
        steps would recompile nothing.
        """
        _ = self.deployment.first_swaps
        if self._recompiled:
            self.deployment.begin_anew()
            self._recompiled = False
        self.deployment.restore()
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

    def companions(self) -> list[AdapterDescription]:
        """The companions of the contract, as data."""
        wanted: Companions = getattr(self.subject, "companions", "few")
        described = companions_of(self.deployment.plan, wanted)
        return [described[what] for what in self.deployment.companions]

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
        bad = break_adapter(source, folder, defect, room=deployment.room)
        before = deployment.fingerprint()
        if not deployment.refuses(bad):
            raise LawBrokenError("swap-atomic", f"an adapter with a {defect} was accepted")
        if changes := before.changes():
            raise LawBrokenError("swap-atomic", f"refused ({defect}), but {changes[0]}")
        self._check("swap-atomic")

    def set_scale(self, scale: float) -> None:
        """Scale the adapter in place."""
        self.subject.set_scale(self.deployment.compiled, scale)
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
        deployment, folder = self.deployment, self.deployment.new_folder()
        self.subject.save(deployment.compiled, folder)
        try:
            reloaded = deployment.fresh(folder)
        except Exception as error:  # whatever PEFT raises about the file
            raise LawBrokenError(
                "knobs-follow", f"what was saved of {self.adapter.name} cannot be loaded: {error}"
            ) from error
        found = deployment.compare(self.adapter, model=reloaded)
        if not found.equal:
            raise LawBrokenError(
                "knobs-follow", f"the saved adapter reloads differently: {found.detail}"
            )
        self._check("knobs-follow")

    def add_adapter(self, adapter: AdapterDescription) -> None:
        """Load another adapter beside the one that is swapped, look at both, and take it away again."""
        deployment, name = self.deployment, "added"
        if not deployment.stands_beside(self.folder_of(adapter)):
            return
        before = deployment.fingerprint()
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

    def _swap(self, adapter: Path | None) -> None:
        deployment = self.deployment
        deployment.run()  # what other steps made necessary is compiled before the swap is watched
        before = deployment.fingerprint()
        with hotswap.watch_compiles() as log:
            deployment.swap(adapter)
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
        if "swap-isolated" in self.subject.unsupported:
            return
        own, base = f".{self.subject.adapter_name}", base_tensors(self.deployment.base)
        for change in self.deployment.snapshot.changes(storage=False):
            name = change.removesuffix(" changed its values")
            foreign = ".lora_" in name or in_base(name) in base
            if name != change and own not in name and foreign:
                raise LawBrokenError("swap-isolated", change)

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
        model = self.deployment.served if eager else None
        found = self.deployment.compare(adapter, model=model, scale=scale, copies=copies)
        if found.tolerance:
            self.error = max(self.error, found.max_error / found.tolerance)
        if not found.equal:
            name = "the base model" if adapter is None else "a fresh load"
            raise LawBrokenError(law, f"{when} the outputs are not those of {name}: {found.detail}")
