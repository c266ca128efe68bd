"""inspect: what the files of one adapter say, judged against a plan and a base model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from hotswap.adapters.config import CONFIG, FIELDS
from hotswap.adapters.files import DIFFUSERS_WEIGHTS, WEIGHTS
from hotswap.adapters.fit import BaseModel, belongs, class_needed, file_fits
from hotswap.adapters.header import FileLayout
from hotswap.adapters.modules import widest
from hotswap.adapters.patterns import matches
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.reader import Opened, SpecReader
from hotswap.adapters.spec import AdapterSpec, merge_alike
from hotswap.adapters.targets import naming
from hotswap.adapters.weights import value_findings
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

_USUAL = (WEIGHTS, DIFFUSERS_WEIGHTS)
_MOST_GOOD = 10_000  # marks that are kept


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is kept of one adapter, so that a fleet of thousands stays small.

    ``mark`` is equal for files that may be copies of each other: their config, header and size. Where other
    adapters are on another ``ground``, ``of_ground`` are findings, too.
    """

    path: str
    findings: tuple[Finding, ...]
    rank: int = 0
    modules: int = 0
    mark: bytes = b""
    size: int = 0
    base: str = ""
    ground: str = ""
    of_ground: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name, or that of a file that has one of its own."""
        path = Path(self.path)
        if path.suffix == ".safetensors":
            return path.resolve().parent.name if path.name in _USUAL else path.stem
        return path.name or path.resolve().name


@dataclass(slots=True)
class Inspector:
    """Inspects one adapter after the other; each gives its findings, never an exception."""

    plan: SwapPlan | None = None
    base: BaseModel | None = None
    weights: bool = False
    allow_pickle: bool = False
    _reader: SpecReader = field(init=False)
    _good: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Read files for the pipeline that the base model is."""
        family = self.base.family if self.base is not None else None
        self._reader = SpecReader(family, allow_pickle=self.allow_pickle)

    def __call__(self, path: str) -> Inspection:
        """Judge a folder, a file or a hub id."""
        try:
            with self._reader.open(path) as opened:
                return self._judge(opened)
        except UnreadableAdapterError as error:
            return Inspection(path, error.findings)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            text = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            return Inspection(path, (Finding(path, "HSW001", text, "check the path"),))

    def _judge(self, opened: Opened) -> Inspection:
        spec = opened.spec
        findings: list[Finding] = []
        if opened.mark not in self._good:  # texts that were good are good again
            findings += (
                (found for found in spec.findings if found not in spec.of_ground)
                if self.plan is None
                else file_fits(self.plan, spec)
            )
            if self.base is not None:
                findings += belongs(self.base, spec)
                findings += class_needed(self.base, spec) if self.plan is None else ()
            findings += _remarks(self.plan, spec, opened.layout)
        if not findings and opened.mark and opened.whole and len(self._good) < _MOST_GOOD:
            self._good.add(opened.mark)
        if opened.file is not None:
            findings += _links(spec.path, str(opened.file.name))
            if self.weights:
                findings += value_findings(spec.path, opened.file, opened.layout)
        base = str(spec.config.get("base_model_name_or_path") or "")
        kept = (spec.rank, len(spec.modules), opened.mark, spec.bytes, base)
        ground = repr(spec.ground or "")
        return Inspection(spec.path, merge_alike(findings), *kept, ground, spec.of_ground)


def _remarks(plan: SwapPlan | None, spec: AdapterSpec, layout: FileLayout) -> Iterator[Finding]:
    """What a swap accepts and is seldom meant."""
    path, config = spec.path, spec.config
    names = list(spec.modules)
    if config.get("target_parameters"):
        names += [f"{n}.{p}" for n, module in spec.modules.items() for p in module.parameters]
    for patterns in ("rank_pattern", "alpha_pattern"):
        keys = config.get(patterns) or () if names else ()
        idle = [key for key in keys if not any(matches(key, name) for name in names)]
        if idle:
            more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
            text = (
                f"{patterns} has {ascii(idle[0])[:80]}, which matches no module with weights{more}"
            )
            remedy = "correct the pattern: rank and alpha of these modules are the usual ones"
            yield Finding(path, "HSW111", text, remedy)
    dtypes = {*map(itemgetter(0), layout.tensors.values())}
    if len(dtypes) > 1:
        dtypes = {info.dtype for name, info in layout.tensors.items() if ".lora_" in name}
    if len(dtypes) > 1:
        text, remedy = f"has weights in {', '.join(sorted(dtypes))}", "save it in one dtype"
        yield Finding(path, "HSW115", text, remedy)
    elif plan is not None and dtypes and widest((plan.dtype, *dtypes)) != plan.dtype:
        text = f"has weights in {min(dtypes)}, which the plan's {plan.dtype} rounds"
        yield Finding(path, "HSW115", text, "save it in the plan's dtype, or plan again with it")
    unknown = sorted(config.keys() - FIELDS)
    if unknown:
        text = f"the config has {ascii(unknown[0])[:60]}, which PEFT's LoraConfig does not know"
        text += f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        remedy = "remove it, or correct its name: PEFT and a swap pass over it"
        yield Finding(path, "HSW119", text, remedy)
    if spec.components and any("dora_scale" in name for name in layout.tensors):
        text = "has dora_scale, which diffusers leaves out: it is loaded as plain LoRA"
        remedy = "convert it: diffusers reads magnitudes of DoRA as lora_magnitude_vector"
        yield Finding(path, "HSW118", text, remedy)
    yield from _target_remarks(spec)


def _target_remarks(spec: AdapterSpec) -> Iterator[Finding]:
    """Compare what the config names with the weights; neither PEFT nor a swap loads what it does not name."""
    if spec.left_out:
        text = f"has weights for {min(spec.left_out)}, which the config does not name"
        more = len(spec.left_out) - 1
        text += f" (and {more} more)" if more else ""
        remedy = "correct target_modules: these weights are left out when the adapter is loaded"
        yield Finding(spec.path, "HSW118", text, remedy)
    targets = spec.config.get("target_modules")
    if not isinstance(targets, list) or not spec.modules or spec.findings or spec.components:
        return
    bare = [f".{name}".replace(".base_layer", "") for name in (*spec.modules, *spec.left_out)]
    ends = {name.rpartition(".")[2] for name in bare}
    named = naming(spec.config)  # all-linear is saved as names, of those too that are excluded
    missing = [
        target
        for target in sorted({*map(str, targets)} - ends)
        if named(target) and not any(name.endswith(f".{target}") for name in bare)
    ]
    if missing:
        text = f"target_modules has {ascii(missing[0])[:80]}, for which there are no weights"
        remedy = "correct target_modules, or save the adapter again"
        yield Finding(spec.path, "HSW118", text, remedy)


def _links(path: str, weights: str) -> Iterator[Finding]:
    """Files that lie elsewhere, except in the hub's cache, where they all are links to its blobs."""
    parent, name = os.path.split(weights)
    for file in (name, CONFIG):
        place = os.path.join(parent, file)
        if not os.path.islink(place):
            continue
        folder, target = os.path.realpath(parent), os.path.realpath(place)
        blobs = os.path.join(os.path.dirname(os.path.dirname(folder)), "blobs")
        if not target.startswith((folder + os.sep, blobs + os.sep)):
            text = f"{file} is a link to a file out of the folder: {ascii(target)[:120]}"
            remedy = "put the file itself there: a link may lead anywhere"
            yield Finding(path, "HSW008", text, remedy)
