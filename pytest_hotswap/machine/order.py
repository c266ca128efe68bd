"""OrderSteps: load, prepare, compile and swap in any order."""

from __future__ import annotations

import copy
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hotswap
from hotswap.adapters.plan import ModulePlan
from pytest_hotswap.adapters.described import AdapterDescription, write_adapter
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.machine.steps import LawBrokenError
from pytest_hotswap.subjects.base import Subject


class OrderSteps:
    """The steps of setting up, on one linear layer; the rest is the subject's."""

    adapters = (AdapterDescription(1, 2, seed=1), AdapterDescription(2, 1, seed=2))

    def __init__(self, subject: Subject) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hotswap-order-")
        self.subject = copy.copy(subject)
        here: Any = self.subject
        here.base_model = _one_layer
        here.inputs = lambda: {"input": torch.linspace(-1, 1, 8).reshape(2, 4)}
        plan = hotswap.SwapPlan({"layer": ModulePlan("linear", 4, 4, 3)})
        self.paths = [
            write_adapter(Path(self._folder.name) / str(index), adapter, plan)
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
        found = self.oracle.compare(self.paths[self.adapter], model=self.model)
        if not found.equal:
            raise LawBrokenError(law, f"the outputs are not those of a fresh load: {found.detail}")


def _one_layer() -> nn.Module:
    """The smallest model that can be adapted."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(layer=nn.Linear(4, 3))).eval()
