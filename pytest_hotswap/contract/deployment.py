"""Deployment: a subject brought up once for a class of tests, with its oracle."""

from __future__ import annotations

import contextlib
import copy
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

import hotswap
from hotswap.checks.equivalence import (
    Comparison,
    compare,
    first_difference,
    widened,
)
from hotswap.checks.snapshot import Snapshot
from hotswap.engine.layout.slots import lora_layers, slots
from pytest_hotswap.adapters.companions import Companions, in_names_of, left_out, write_companions
from pytest_hotswap.adapters.derived import alike_adapters, negate_adapter, rescale_adapter
from pytest_hotswap.contract.settings import changed, files_of, settings
from pytest_hotswap.subjects.base import Subject

T = TypeVar("T")

NEIGHBOURS = 8
"""Adapters that one is swapped with: all pairs of a fleet of 1,000 would be a million swaps."""

KEPT = 32
"""Outputs of the oracle that are kept, so that memory does not grow with the fleet."""

SMALL = 2**28
"""Bytes of a base model up to which the last fresh load is kept: a second copy of it."""

LONGEST = 400
"""Characters of what a subject raises that are repeated: a state dict's mismatches fill pages."""

NOTE = (
    "bringing the snapshot back disturbs this deployment, which remembers what is in place somewhere "
    "else: it is brought up anew instead; give the subject a restored(model) that makes it forget"
)
"""What is said of a deployment that remembers more than its modules show."""

BYSTANDER = "default2"
"""The name of another adapter: it contains that of the one that is swapped."""

FIRST = 8
"""Adapters whose first swap is watched: after the second one torch has made dynamic what changes."""


@dataclass
class Broken:
    """A deployment that cannot be brought up, why, and whether a test has said so."""

    text: str
    told: bool = False


class Deployment:
    """The compiled model under test, a snapshot to return to, and freshly loaded adapters.

    One that is not to be run alone (``runs_alone``) may only be called where every other rank calls it too.
    """

    runs_alone = True

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        self.paths = subject.adapter_paths()
        self.specs = {path: hotswap.AdapterSpec.read(path) for path in self.paths}
        given: hotswap.SwapPlan | None = getattr(subject, "plan", None)
        specs = list(self.specs.values())
        self.plan = in_names_of(specs, given) if given else hotswap.plan(specs)
        self.inputs: Mapping[str, Any] = subject.inputs()
        self.refusal = ""
        self.probed = 0
        self.left_out: dict[str, str] = {}
        self.environment = dict(os.environ)
        """The environment before any swap; of the adapters' files, how they were."""
        self.files = files_of(self.paths)
        self.disturbed = False
        """Whether the snapshot cannot be brought back: the deployment is brought up anew instead."""
        self.first_none: hotswap.CompileLog | None = None
        """What the first swap to the base model compiled."""
        self.first_scale: hotswap.CompileLog | None = None
        """What the first factor compiled, which later ones may find."""
        self.first_moves: dict[Path, list[str]] = {}
        """What the first swap to an adapter moved: bringing the snapshot back would undo it."""
        self.first_changes: dict[Path, list[str]] = {}
        """Which of the process' settings it changed: at a later one they are changed already."""
        self._expected: OrderedDict[tuple[Path | None, float, int], Any] = OrderedDict()
        self._fresh: tuple[Any, Any] | None = None
        self._folders = 0

    @cached_property
    def first(self) -> Path:
        """The adapter to load first: the one with the most tensors, the narrowest of these.

        One that has no effect, as before training, is none: no control could show anything with it.
        """
        specs = self.specs
        order = sorted(self.paths, key=lambda path: (-_tensors_of(specs[path]), specs[path].rank))
        return next(filter(self._has_effect, order[:NEIGHBOURS]), order[0])

    def _has_effect(self, adapter: Path) -> bool:
        """Whether PEFT's own load of it changes the outputs; what it refuses the laws will meet."""
        try:
            return not compare(self.expected(adapter), self.expected(None)).equal
        except Exception:  # whatever PEFT or the model raises
            return True

    @property
    def by_size(self) -> list[Path]:
        """The adapters, from the one with the fewest modules: a swap that clears by name clears the most."""
        return sorted(self.paths, key=lambda path: len(self.specs[path].modules))

    @cached_property
    def rescaled(self) -> Path:
        """The first adapter with another alpha: unlike a neighbour, it is never a twin."""
        return rescale_adapter(self.first, self.new_folder(), 3.0)

    @cached_property
    def negated(self) -> Path:
        """The first adapter with the opposite effect: its config and the sizes of its files are the same."""
        return negate_adapter(self.first, self.new_folder())

    @cached_property
    def alike(self) -> dict[str, Path]:
        """Adapters that differ from the first in a single thing."""
        folder = self.new_folder()
        folder.mkdir(parents=True)
        return alike_adapters(self.first, folder)

    def other(self, adapter: Path) -> Path:
        """Another adapter of the fleet, or a rescaled copy where there is only one."""
        return next((path for path in self.paths if path != adapter), None) or self.rescaled

    def stands_beside(self, adapter: Path) -> bool:
        """Whether PEFT loads an adapter beside the first: it does not where one of them has no token rows."""
        if not self.plan.tokens:
            return True
        from peft import PeftModel

        model = PeftModel.from_pretrained(self.copied_base(), self.first)
        try:
            model.load_adapter(str(adapter), BYSTANDER)
        except Exception:  # whatever PEFT raises
            return False
        return True

    @cached_property
    def companions(self) -> dict[str, Path]:
        """Adapters inside of the plan that the fleet does not have, by what is special about them."""
        folder = self.new_folder()
        wanted: Companions = getattr(self.subject, "companions", "few")
        task_type = self.specs[self.first].config.get("task_type")
        found, self.left_out = write_companions(folder, self.plan, wanted, task_type=task_type)
        self.left_out |= left_out(self.plan, wanted)
        for what, path in [*found.items()]:
            try:
                self.expected(path)
            except Exception as error:  # PEFT ties ranks of some layers to each other
                self.left_out[what] = f"PEFT does not load it: {brief(error)}"
                del found[what]
        return found

    def neighbours(self, adapter: Path) -> list[Path]:
        """The adapters from which one is reached: all of a small fleet, the next ones of a large one."""
        at = self.paths.index(adapter)
        return [*self.paths[at:], *self.paths[:at]][:NEIGHBOURS]

    @property
    def takes_none(self) -> bool:
        """Whether the subject can swap to the base model."""
        return not {"swap-has-effect", "swap-has-effect[none]"} & self.subject.unsupported.keys()

    def as_one(self) -> contextlib.AbstractContextManager[None]:
        """A scope that fails as a whole: of a deployment over ranks, on each if it fails on one."""
        return contextlib.nullcontext()

    def agreed(self, value: T) -> T:
        """The value itself; over ranks that of the first one, or whether it is true on all of them."""
        return value

    def new_folder(self) -> Path:
        """A path for an adapter that does not exist yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._folders += 1
        return self.folder / f"derived-{self._folders}"

    def loaded(self) -> Any:
        """A freshly loaded model, neither prepared nor compiled."""
        return self.subject.load(self.subject.base_model(), self.first)

    def prepared(self) -> Any:
        """A freshly loaded and prepared model, not compiled."""
        model = self.loaded()
        self.subject.prepare(model, self.plan)
        return model

    @cached_property
    def compiled(self) -> Any:
        """The model under test: loaded, prepared, compiled and called once."""
        with contextlib.suppress(Exception), self.as_one():  # the law that needs it meets it again
            _ = self.unprepared_recompiles  # it ends with a reset: nothing is compiled before
        model = self.subject.compile(self.prepared())
        self.subject.run(model, self.inputs)
        return model

    @property
    def served(self) -> Any:
        """The first torch module of the model under test, without torch.compile."""
        return self.subject.models(self.compiled)[0]

    def module_of(self, model: Any) -> Any:
        """The torch module of a model, which may be an object around one."""
        return model if isinstance(model, torch.nn.Module) else self.subject.models(model)[0]

    def swap(self, *adapters: Path | None) -> None:
        """Swap adapters into the compiled model, one after the other."""
        for adapter in adapters:
            self.subject.swap(self.compiled, adapter)

    def refuses(self, adapter: Path) -> bool:
        """Try to swap an adapter in; ``refusal`` is what the subject raised."""
        try:
            self.swap(adapter)
        except Exception as error:  # whatever the subject raises is a refusal
            self.refusal = f"{type(error).__name__}: {brief(error)}"
            return True
        return False

    def run(self, model: Any = None, *, inputs: Mapping[str, Any] | None = None) -> Any:
        """Run a model, by default the compiled one, by default on the subject's inputs."""
        model = self.compiled if model is None else model
        return self.subject.run(model, self.inputs if inputs is None else inputs)

    def batch(self, copies: int) -> Mapping[str, Any]:
        """The subject's inputs in a batch that is ``copies`` times as large."""
        if copies == 1:
            return self.inputs
        return {
            name: torch.cat([value] * copies) if torch.is_tensor(value) and value.ndim else value
            for name, value in self.inputs.items()
        }

    def fingerprint(self, model: Any = None) -> Snapshot:
        """A model, by default the compiled one, as it is now, bit for bit."""
        return Snapshot.take(*self.subject.models(self.compiled if model is None else model))

    @cached_property
    def snapshot(self) -> Snapshot:
        """The model under test as it was after its first call."""
        return self.fingerprint()

    def restore(self) -> None:
        """Bring the compiled model back, bit for bit, by a snapshot and never by a swap."""
        _ = self.first_swaps
        if self.disturbed:
            self.begin_anew()
        self._restore()

    def begin_anew(self) -> None:
        """Compile another model, which no swap has touched."""
        self._forget("compiled", "snapshot")

    def _restore(self) -> None:
        self.snapshot.restore()
        if (restored := getattr(self.subject, "restored", None)) is not None:
            restored(self.compiled)

    def close(self) -> None:
        """Forget what was compiled; where it is used again it is compiled anew."""
        self._forget("compiled", "snapshot", "first_swaps")

    def _forget(self, *names: str) -> None:
        torch._dynamo.reset()
        for name in names:
            vars(self).pop(name, None)

    @cached_property
    def room(self) -> dict[str, int]:
        """The rank that each module takes: the planned one, or what its tensors were given."""
        found = dict(self.plan.ranks)
        name = self.subject.adapter_name
        for module, layer in lora_layers(self.served, name).items():
            found[module] = max(
                [found.get(module, 0), *(slot.rank or 0 for slot in slots(layer, name))]
            )
        return found

    @cached_property
    def base(self) -> Any:
        """The base model on its own."""
        return self.subject.base_model()

    def fresh(self, adapter: Path, scale: float = 1.0) -> Any:
        """The oracle: the adapter as PEFT loads it into a base model of its own; only to be read.

        Of a small model the last one is kept: the laws of one adapter ask for it one after the other.
        """
        from peft import PeftModel

        key = (adapter, scale, adapter.stat().st_mtime_ns)
        if self._fresh is not None and self._fresh[0] == key:
            return self._fresh[1]
        model = PeftModel.from_pretrained(self.copied_base(), adapter).eval()
        if scale != 1.0:
            for layer in lora_layers(model).values():
                layer.set_scale("default", scale)
        size = sum(p.numel() * p.element_size() for p in self.base.parameters())
        self._fresh = (key, model) if size <= SMALL else None
        return model

    def copied_base(self) -> Any:
        """A base model of its own, without reading files again."""
        return copy.deepcopy(self.base)

    def expected(self, adapter: Path | None, scale: float = 1.0, *, copies: int = 1) -> Any:
        """What the oracle (None: the base model) gives; computed once while it is used."""
        key = (adapter, scale, copies)
        if key not in self._expected:
            model = self.base if adapter is None else self.fresh(adapter, scale)
            self._expected[key] = self.run(model, inputs=self.batch(copies))
        self._expected.move_to_end(key)
        while len(self._expected) > KEPT:
            self._expected.popitem(last=False)
        return self._expected[key]

    def compare(
        self, adapter: Path | None, *, model: Any = None, scale: float = 1.0, copies: int = 1
    ) -> Comparison:
        """Compare a model's outputs, by default the compiled one's, with the oracle's."""
        actual = self.run(model, inputs=self.batch(copies))
        return compare(actual, self.expected(adapter, scale, copies=copies))

    def differs(self, before: Any) -> bool:
        """Whether the compiled model's outputs are others than before, by a single bit."""
        return compare(self.run(), before).max_error != 0.0

    def difference(self, ours: Any, theirs: Any, run: Any, **more: Any) -> str | None:
        """The first module whose output differs."""
        return first_difference(ours, theirs, run, **more)

    def widened(self, model: Any) -> Any:
        """A copy of the model under test in float64."""
        return widened(model)

    @cached_property
    def unprepared_recompiles(self) -> dict[str, list[str]]:
        """What recompiles in an unprepared model: at a repeated call, and after another alpha.

        The alpha is written into the scalings, as every swap without a preparation does. torch makes a
        number dynamic at its first change in a process, and then recompiles no more; here that history
        is neither read nor written, so it does not matter what ran before.
        """
        from peft import PeftModel

        model: Any = PeftModel.from_pretrained(self.subject.base_model(), self.first).eval()
        layers = lora_layers(model).values()
        try:
            model = self.subject.compile(model)
        except Exception:  # of a deployment that compiles what load() returns, and no other
            model = self.loaded()
            layers = lora_layers(self.module_of(model), self.subject.adapter_name).values()
            model = self.subject.compile(model)
        found = {}
        # a number that is compiled as dynamic, as dynamic=True does, recompiles for no value
        static = {"automatic_dynamic_shapes": False, "specialize_float": True}
        try:
            with torch._dynamo.config.patch(static):
                self.run(model)
                self.run(model)  # what a model notes of itself in its first call compiles once more
                for case in ("no swap", "another alpha"):
                    with hotswap.watch_compiles() as log:
                        for layer in layers if case == "another alpha" else ():
                            for name in layer.scaling:
                                layer.scaling[name] *= 1.37  # no adapter of the fleet has it
                        self.run(model)
                    found[case] = [str(recompile) for recompile in log.recompiles]
        finally:
            torch._dynamo.reset()  # torch has noted what changed, and would compile it as dynamic
        return found

    @cached_property
    def first_swaps(self) -> dict[Path, hotswap.CompileLog]:
        """What the first swap to each adapter compiled: a later one may find code that fits by then.

        Each that is right is then swapped in again after the snapshot was brought back. Where the outputs
        are others then, the deployment remembers something that the snapshot does not have.
        """
        _ = self.compiled
        self._restore()
        self.run()  # torch may compile at a second call too
        found, right = {}, []
        for path in self.paths[:FIRST]:
            with contextlib.suppress(Exception), self.as_one():
                then, model = settings(), self.fingerprint()
                with hotswap.watch_compiles() as found[path]:
                    self.swap(path)
                    self.first_moves[path] = model.changes(values=False)
                    output = self.run()
                self.first_changes[path] = changed(then, settings())
                equal = compare(output, self.expected(path)).equal
                right += [path] if self.agreed(equal) else []
        if self.takes_none:
            watch = hotswap.watch_compiles()
            with contextlib.suppress(Exception), self.as_one(), watch as self.first_none:
                self.probed += 1
                self.swap(None)
                self.run()
        if "knobs-follow" not in self.subject.unsupported:
            with contextlib.suppress(Exception), self.as_one():
                self._restore()
                self.run()
                with hotswap.watch_compiles() as self.first_scale:
                    self.subject.set_scale(self.compiled, 0.5)
                    self.run()
            self._restore()
        for path in right:
            with contextlib.suppress(Exception), self.as_one():
                self.probed += 1
                self.swap(self.other(path))
                for _ in range(2):
                    self._restore()
                    self.probed += 1
                    self.swap(path)
                    self.disturbed |= not self.agreed(self.compare(path).equal)
        return found


def _tensors_of(spec: hotswap.AdapterSpec) -> int:
    """How many tensors of a model an adapter has."""
    of_layers = sum(2 + module.bias + module.dora for module in spec.modules.values())
    return of_layers + len(spec.saved) + len(spec.tokens)


def brief(error: Exception) -> str:
    """What an error says, on one line that is not too long."""
    return " ".join(str(error).split())[:LONGEST]
