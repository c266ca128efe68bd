"""PackageSubject: an exported model, beside a model in whose layers the contract can look."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotswap
from pytest_hotswap.subjects.base import usage_error
from pytest_hotswap.subjects.reference import ReferenceSubject

_NO_COMPILE = "an exported model is not compiled again"


@dataclass(frozen=True, slots=True)
class Served:
    """A package, and a prepared model whose adapter is the package's own memory: it shows what is there."""

    package: Any
    mirror: Any


class PackageSubject(ReferenceSubject):
    """``package`` is a file that ``hotswap.export`` wrote; None: ``export`` writes one.

    What is judged is the package: it runs, and is swapped and scaled; the model beside it is only looked at.
    """

    package: str | Path | None = None
    exported = True  # nothing recompiles, so nothing has to be watched
    unsupported: Mapping[str, str] = {
        "zero-recompiles": _NO_COMPILE,
        "unprepared-recompiles": _NO_COMPILE,
        "prepare-before-compile": "an exported model cannot be prepared",
        "knobs-follow[disabled]": "an exported model has no switch: swap in None",
    }

    def export(self, model: Any, path: Path) -> Path:
        """Export a prepared model."""
        return hotswap.export(model, (), path, kwargs=self.inputs())

    def load(self, base: Any, adapter: Path) -> Any:
        self._first = adapter
        if self.package is None:
            return super().load(base, adapter)
        return hotswap.load(base, self._room(), adapter, adapter_name=self.adapter_name)

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        hotswap.prepare(model, plan=plan if self.package is None else self._room())

    def _room(self) -> hotswap.SwapPlan:
        """What fits into the package that was given."""
        from hotswap.compiler.packages import PackageFile
        from hotswap.engine.manifest import Manifest

        return Manifest.read(PackageFile.read(self.package or "")).plan

    def compile(self, model: Any) -> Served:
        if self.package is not None:
            package = hotswap.Package(self.package)
        else:
            with tempfile.TemporaryDirectory() as folder:
                package = hotswap.Package(self.export(model, Path(folder) / "model.pt2"))
        _share(package, model, self.adapter_name)
        package.swap(self._first)
        return Served(package, model)

    def models(self, model: Any) -> list[Any]:
        return [model.mirror] if isinstance(model, Served) else super().models(model)

    def run(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        return super().run(_called(model), inputs)

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(_called(model), adapter)

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(_called(model), scale)

    def restored(self, model: Any) -> None:
        from hotswap.engine.layout.registry import forget_adapters

        forget_adapters(_called(model))

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """A package has no switch: its adapter is scaled to nothing."""
        if not isinstance(model, Served):
            with super().disabled(model):
                yield
            return
        self.set_scale(model, 0.0)
        try:
            yield
        finally:
            self.set_scale(model, 1.0)


def _called(model: Any) -> Any:
    """What runs and is swapped: the package where there is one."""
    return model.package if isinstance(model, Served) else model


def _share(package: Any, model: Any, name: str) -> None:
    """Let a prepared model's adapter, in place, be the package's."""
    from hotswap.engine.layout.registry import placement_of

    ours, theirs = placement_of(model, name), placement_of(package, name)
    forms = [
        [(s.name, tuple(s.tensor.shape), s.tensor.dtype) for s in p.slots] for p in (ours, theirs)
    ]
    if forms[0] != forms[1]:
        raise usage_error("the package was exported from another model than base_model() gives")
    for slot, packaged in zip(ours.slots, theirs.slots, strict=True):
        slot.tensor.data = packaged.tensor
    for module, layer in ours.layers.items():
        packaged_layer = theirs.layers[module]
        layer.scaling.put(name, packaged_layer.scaling[name])
        layer.scaling.states = packaged_layer.scaling.states
    theirs.config = ours.config
