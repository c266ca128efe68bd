"""fits: can an adapter be swapped into what a plan prepares; the one place of the swap rules."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar

from hotswap.adapters.config import SAVE_AGAIN, saved_module, unsupported_features
from hotswap.adapters.modules import ModuleSpec
from hotswap.adapters.names import family, owner
from hotswap.adapters.nested import nested_as, renamed_wrappers
from hotswap.adapters.plan import ModulePlan, SwapPlan
from hotswap.adapters.spec import AdapterSpec, merge_alike
from hotswap.adapters.targets import all_linear, naming
from hotswap.adapters.texts import Family
from hotswap.findings import Finding

_PLAN_AGAIN = (
    "load the model with hotswap.load(base_model, plan) and a plan that includes this adapter"
)
_OTHER_BASE = "use an adapter that was trained for the same base model"
_FORM = ("kind", "in_features", "out_features", "kernel", "groups", "experts", "parameters")
_TIE = "use adapters with the same ensure_weight_tying"
_VERBS = {"kind": "is of", "parameters": "targets"}  # of others: has
_TEXT_MODEL = "text_model."
_T = TypeVar("_T")


def fits(plan: SwapPlan, spec: AdapterSpec) -> tuple[Finding, ...]:
    """List why ``swap()`` would refuse the adapter; an empty tuple means that it accepts.

    Findings of the adapter itself are included; those that repeat over layers are merged.
    """
    if spec.components:
        spec = spec.within(*{name.partition(".")[0] for name in plan.modules})
    spec = nested_as(spec, plan.modules)
    findings = [*_ground_findings(plan, spec)]
    closest = _closest_of(plan.modules)
    rank = spec.rank
    for name, module in spec.modules.items():
        place = plan.modules.get(name)
        if place is None:
            text = f"the adapter targets a module that is not in the plan{closest(family(name))}"
            remedy = f"{_PLAN_AGAIN}, or check that it belongs to this base model"
            findings.append(Finding(f"{spec.path}::{name}", "HSW106", text, remedy))
        elif not same(place, module):
            findings += _module_findings(f"{spec.path}::{name}", place, module, rank)
    findings += _trained_findings(plan, spec)
    findings += _parameters_left(plan, spec)
    return merge_alike(findings)


def file_fits(plan: SwapPlan, spec: AdapterSpec) -> tuple[Finding, ...]:
    """The same for an adapter as its file says it, which a pipeline may still widen."""
    if spec.components:
        spec = spec.within(*{name.partition(".")[0] for name in plan.modules})
    return fits(plan, as_wide_as(plan.modules, spec))


def as_wide_as(modules: Mapping[str, ModuleSpec | ModulePlan], spec: AdapterSpec) -> AdapterSpec:
    """The adapter with the input as wide as others have it, where a pipeline of diffusers widens it.

    That is the first layer of Flux, to which Fill and Control give more channels; the new ones get zeros.
    """
    name = "x_embedder" if spec.components == ("transformer",) else "transformer.x_embedder"
    own, other = spec.modules.get(name), modules.get(name)
    if own is None or other is None or own.in_features >= other.in_features:
        return spec
    wider = replace(own, in_features=other.in_features)
    return replace(spec, modules={**spec.modules, name: wider})


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What a base model offers: LoRA's place at each module, the shapes of its parameters, its prefix.

    ``prefix`` is the name under which a model with a head holds the model without one. ``respell`` gives an
    adapter that was trained with other names of the modules those that they have now. A pipeline has
    ``components``, with whose names those of its modules start, and a ``family`` of files. Below ``widens``
    a module takes adapters for a narrower input, as diffusers' Flux does. ``others`` are modules that cannot
    carry LoRA. ``kind`` is the class of the model where its config tells it. ``head`` says which names are
    meant: its own, those that it would have were its head left out or added, or any of these.
    """

    name: str
    modules: dict[str, ModulePlan]
    parameters: dict[str, tuple[int, ...]]
    prefix: str = ""
    respell: Callable[[AdapterSpec], AdapterSpec] | None = None
    components: tuple[str, ...] = ()
    family: Family | None = None
    widens: str | None = None
    others: tuple[str, ...] = ()
    kind: str = ""
    head: Literal["any", "own", "left out", "added"] = "any"


def belongs(base: BaseModel, spec: AdapterSpec) -> tuple[Finding, ...]:
    """List the tensors of an adapter that find no module in a base model, or one of other dimensions.

    Of an adapter for several components of a pipeline, a base model by itself is asked about its own. All
    names must be those of one model: the base model, or the same one without its head or with one.
    """
    findings: list[Finding] = []
    if base.components:
        spec = spec.within(*base.components)
    elif len(spec.components) > 1:
        spec = min(map(spec.of_component, spec.components), key=lambda own: _strangers(base, own))
    base, spec = _spelled(base, spec)
    findings += names_others(spec, _others(base))
    findings += _without_text_model(base, spec)
    closest = _closest_of(base.modules)
    for name, module in spec.modules.items():
        where, own = f"{spec.path}::{name}", owner(name)
        place = of_base(base, base.modules, own)
        if module.kind == "parameter":
            findings += _parameter_findings(where, base, own, module)
        elif place is None:
            text = f"{base.name} has no such module that can carry LoRA{closest(family(own))}"
            findings.append(Finding(where, "HSW112", text, _OTHER_BASE))
        else:
            room = replace(place, rank=module.rank, bias=True, dora=True)
            if base.widens is not None and own.startswith(base.widens):
                room = replace(room, in_features=min(place.in_features, module.in_features))
            findings += _module_findings(where, room, module, module.rank, "the base model")
    for name, info in {**spec.saved, **spec.copies}.items():
        shape = of_base(base, base.parameters, name.replace(".base_layer.", "."))
        if shape is not None and shape != info.shape:
            text = f"has shape {list(info.shape)}, the base model has {list(shape)}"
            findings.append(Finding(f"{spec.path}::{name}", "HSW107", text, _OTHER_BASE))
    findings += _missing_of_saved(spec, base.parameters, "the base model", base.prefix)
    for name, rows in spec.tokens.items():
        shape = of_base(base, base.parameters, f"{name}.weight")
        if shape is None or shape[-1] != rows.dimension or max(rows.indices) >= shape[0]:
            text = f"trains rows of {rows.dimension}, the base model has {list(shape or ())}"
            findings.append(Finding(f"{spec.path}::{name}", "HSW107", text, _OTHER_BASE))
    return merge_alike(findings)


def class_needed(base: BaseModel, spec: AdapterSpec) -> tuple[Finding, ...]:
    """Say on which class it depends whether a swap accepts an adapter that belongs to a base model.

    A config names one class, and the same model may be served without its head (AutoModel) or with one. Where
    it names none, nothing is expected.
    """
    model, spec = _spelled(base, spec)
    if not base.kind or model.head == "own" or _strangers(model, spec):  # these have findings
        return ()
    start = f"{base.prefix}."
    if model.head == "left out":
        text = (
            f"fits the model without its head (AutoModel); {base.kind}, the class of --base, has {start} "
            "before"
        )
        remedy = f"serve it with AutoModel, or take adapters that were trained on {base.kind}"
    else:
        text = f"fits a model with a head; {base.kind}, the class of --base, has no {start} before"
        remedy = "serve it with the class that it was trained on, as AutoModelForCausalLM loads one"
    return (Finding(spec.path, "HSW120", f"{text} the names of modules, and refuses it", remedy),)


def names_others(spec: AdapterSpec, others: Iterable[str]) -> list[Finding]:
    """A finding where an adapter's config, or that of a component, names a module that cannot carry LoRA.

    PEFT refuses to load such an adapter.
    """
    known, found = [*others], []
    for start, config in _configs(spec):
        targets = config.get("target_modules")
        if targets and not all_linear(config):
            named, own = naming(config), [name for name in known if name.startswith(start)]
            # of a file for pipelines, names in lists lose it when they are loaded
            before = ("", _TEXT_MODEL) if start and not isinstance(targets, str) else ("",)
            found += [n for n in own if any(named(more + n[len(start) :]) for more in before)]
    if not found:
        return []
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    text = f"target_modules names {found[0]}{more}, which cannot carry LoRA, and PEFT refuses that"
    return [Finding(spec.path, "HSW112", text, "correct target_modules: name linear layers alone")]


def _without_text_model(base: BaseModel, spec: AdapterSpec) -> Iterator[Finding]:
    """Components whose pattern names modules only by the ``text_model`` that transformers 5 took out."""
    for start, config in _configs(spec):
        long = f"{start}{_TEXT_MODEL}"
        own = [name for name in spec.modules if name.startswith(long)]
        if not own or not isinstance(config.get("target_modules"), str) or own[0] in base.modules:
            continue
        named = naming(config)
        if not any(named(name.removeprefix(long)) for name in own):
            text = (
                f"target_modules names modules below {long[:-1]}, which {base.name} does not have"
            )
            remedy = "correct target_modules: name modules by the last part of their names"
            yield Finding(spec.path, "HSW112", text, remedy)


def _configs(spec: AdapterSpec) -> list[tuple[str, Mapping[str, Any]]]:
    """The config of each component, and what names of its modules start with."""
    if not spec.configs:
        return [("", spec.config)]
    return [(f"{component}.", config) for component, config in spec.configs.items()]


def of_base(base: BaseModel, known: Mapping[str, _T], name: str) -> _T | None:
    """Look a name up as it is, or with or without the prefix that a model with a head puts before it.

    Files for pipelines have ``text_model``, which transformers 5 took out of CLIP's names.
    """
    if base.head in ("any", "own") and (found := known.get(name)) is not None:
        return found  # as most are
    start = f"{base.prefix}."
    spelled = {"own": name, "left out": start + name, "added": name.removeprefix(start)}
    if base.head == "added" and not name.startswith(start):
        return None
    for own in spelled.values() if base.head == "any" else [spelled[base.head]]:
        found = known.get(own)
        if found is None and _TEXT_MODEL in own:
            found = known.get(own.replace(_TEXT_MODEL, "", 1))
        if found is not None:
            return found
    return None


def _spelled(base: BaseModel, spec: AdapterSpec) -> tuple[BaseModel, AdapterSpec]:
    """Both by names of one model; an adapter that was trained with other names gets those of now."""
    found = _named_alike(base, spec)
    if base.respell is not None and _strangers(found, spec):
        spec = base.respell(spec)
        found = _named_alike(base, spec)
    return found, spec


def _named_alike(base: BaseModel, spec: AdapterSpec) -> BaseModel:
    """The base model by its own names, or by those with another head if the adapter has more of them."""
    own = replace(base, head="own")
    if not base.prefix or not _strangers(own, spec):
        return own
    others = replace(base, head="left out"), replace(base, head="added")
    return min((own, *others), key=lambda model: _strangers(model, spec))


def _strangers(base: BaseModel, spec: AdapterSpec) -> int:
    """How many modules of an adapter a base model does not have."""
    return sum(
        of_base(base, base.modules, owner(name)) is None
        and not any(of_base(base, base.parameters, f"{owner(name)}.{p}") for p in module.parameters)
        for name, module in spec.modules.items()
    )


def _others(base: BaseModel) -> Iterable[str]:
    start = f"{base.prefix}."
    if base.head == "left out":
        return [name.removeprefix(start) for name in base.others if name.startswith(start)]
    return [f"{start}{name}" for name in base.others] if base.head == "added" else base.others


def _parameter_findings(
    where: str, base: BaseModel, own: str, module: ModuleSpec
) -> Iterator[Finding]:
    known = []
    for parameter in module.parameters:
        shape = of_base(base, base.parameters, f"{own}.{parameter}")
        if shape is not None:
            known.append(shape)
        else:
            text = f"{base.name} has no parameter {own}.{parameter}"
            yield Finding(where, "HSW112", text, _OTHER_BASE)
    expected = sorted((module.in_features, module.out_features))
    if known and not any(sorted(shape[-2:]) == expected for shape in known):
        text = f"is for {module.in_features} to {module.out_features} features, the base model has "
        yield Finding(where, "HSW107", text + _shown(known[0]), _OTHER_BASE)


def _ground_findings(plan: SwapPlan, spec: AdapterSpec) -> Iterator[Finding]:
    """The adapter's own findings, without those about what all adapters of the plan have alike."""
    alike = bool(plan.ground) and plan.ground == spec.ground
    yield from (found for found in spec.findings if not alike or found not in spec.of_ground)
    for feature in unsupported_features(plan.ground) if not alike else ():
        text = f"the plan is for adapters that have {feature}"
        yield Finding(spec.path, "HSW102", text, "load a model of its own")


def _trained_findings(plan: SwapPlan, spec: AdapterSpec) -> Iterator[Finding]:
    """Whole modules and token rows: each must have its place in the plan."""
    for name, info in spec.saved.items():
        where, place = f"{spec.path}::{name}", plan.saved.get(name)
        if place is None:
            text = "the adapter carries a tensor of modules_to_save that is not in the plan"
            yield Finding(where, "HSW106", text, _PLAN_AGAIN)
        elif place.shape != info.shape:
            text = f"has shape {list(info.shape)}, the plan has {list(place.shape)}"
            yield Finding(where, "HSW107", text, "use an adapter with a head of the same size")
    yield from _missing_of_saved(spec, plan.saved, "the plan")
    for name, other in {**plan.tied, **spec.tied}.items():
        if other in spec.saved and (name in spec.tied) != (name in plan.tied):
            first, second = ("", "not ") if name in spec.tied else ("not ", "")
            text = f"is {first}tied to {other} in the adapter, and {second}tied in the plan"
            yield Finding(f"{spec.path}::{name}", "HSW107", text, _TIE)
    for name, rows in spec.tokens.items():
        where, slot = f"{spec.path}::{name}", plan.tokens.get(name)
        missing = set(rows.indices) - set(slot.indices if slot else ())
        if slot is None or missing:
            text = f"the adapter trains token {min(missing)}, which is not in the plan"
            yield Finding(where, "HSW106", text, _PLAN_AGAIN)
        elif rows.dimension != slot.dimension:
            text = f"has rows of {rows.dimension}, the plan has {slot.dimension}"
            yield Finding(where, "HSW107", text, _OTHER_BASE)


def _parameters_left(plan: SwapPlan, spec: AdapterSpec) -> Iterator[Finding]:
    """Parameters that the plan targets directly in a module of the adapter, which has no weights for them."""
    mine = {name for name, module in spec.modules.items() if module.kind == "parameter"}
    known = renamed_wrappers(spec, plan.modules) if mine else {}
    owners = {*map(owner, mine - known.keys())}
    for name, place in plan.modules.items() if mine else ():
        if place.kind == "parameter" and owner(name) in owners and name not in mine:
            text = "the adapter has no weights for a parameter that the plan targets directly"
            remedy = "use adapters with the same target_parameters"
            yield Finding(f"{spec.path}::{name}", "HSW107", text, remedy)


def _missing_of_saved(
    spec: AdapterSpec, known: Iterable[str], whose: str, prefix: str = ""
) -> Iterator[Finding]:
    """Tensors of modules that the adapter says to carry whole, and does not."""
    carried = {name.replace(".base_layer.", ".") for name in spec.saved}
    for name in known:
        spelled = {name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")}
        if not (spelled & carried) and saved_module(spec.config, name):
            text = f"is missing: the config says that its module is saved whole, and {whose} has it"
            yield Finding(f"{spec.path}::{name}", "HSW103", text, SAVE_AGAIN)


def _closest_of(modules: Iterable[str]) -> Callable[[str], str]:
    """A function from a family to some words on the one of these modules that is closest to it."""

    @cache
    def closest(name: str) -> str:
        known = Counter(map(family, modules))
        if name in known:
            return f"; closest match: {known[name]} other {name}"
        found = difflib.get_close_matches(name, sorted(known), n=1)
        return f"; closest match: {found[0]}" if found else ""

    return closest


def _module_findings(
    where: str, place: ModulePlan, module: ModuleSpec, rank: int, whose: str = "the plan"
) -> Iterator[Finding]:
    differences = [
        f"{_VERBS.get(name, 'has')} {name} {_shown(found)}, {whose} has {_shown(expected)}"
        for name in _FORM
        if (found := getattr(module, name)) != (expected := getattr(place, name))
        and not (name == "parameters" and {*found} < {*expected})
    ]
    if differences:
        yield Finding(where, "HSW107", "; ".join(differences), _OTHER_BASE)
        return
    if module.rank > place.rank:
        text = f"has rank {module.rank}, the plan allows {place.rank}"
        remedy = f"prepare with target_rank={rank}, or with a plan that includes this adapter"
        yield Finding(where, "HSW105", text, f"{remedy}, before torch.compile")
    if place.rank % place.groups:
        text = f"the plan's rank {place.rank} is not divisible by the convolution's {place.groups}"
        yield Finding(
            where, "HSW104", f"{text} groups", f"prepare with a multiple of {place.groups}"
        )
    for part, has, room in (
        ("lora_B.bias", module.bias, place.bias),
        ("DoRA magnitude", module.dora, place.dora),
    ):
        if has and not room:
            text = f"has a {part}, but the plan has none for this module"
            yield Finding(where, "HSW106", text, _PLAN_AGAIN)


def same(place: ModulePlan, module: ModuleSpec) -> bool:
    """Whether a module is what the plan has, as most are: then there is nothing to look at closely."""
    return (
        module.rank <= place.rank
        and module.in_features == place.in_features
        and module.out_features == place.out_features
        and module.kind == place.kind == "linear"
        and module.kernel == place.kernel
        and module.groups == place.groups == 1
        and not (module.bias or module.dora)
    )


def _shown(value: str | int | tuple[int, ...] | tuple[str, ...]) -> str:
    return "x".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
