"""The rules: one function each, whose docstring is its documentation."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from hotswap.findings import RULES as NAMES
from hotswap.lint.interpreter.typestate import Event, Facts, Problem


class _Veto:
    """On one path the model is fine, so nothing is said about this place."""


VETO: Final = _Veto()
Outcome: TypeAlias = Problem | _Veto | None
Kind = Literal["prepare", "enable", "load", "swap", "compile", "run", "toggle", "scale"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its code, what it looks at, and whether it is on unless it is asked for."""

    code: str
    kinds: tuple[Kind, ...]
    check: Callable[[Event], Outcome]
    default: bool

    @property
    def name(self) -> str:
        """The kebab-case name."""
        return NAMES[self.code]

    @property
    def documentation(self) -> str:
        """What the rule reports, why it matters, and an example of bad and good code."""
        lines = (self.check.__doc__ or "").splitlines()
        return "\n".join(line.removeprefix("    ") for line in lines).strip()


RULES: dict[str, Rule] = {}
"""Every rule by its code, in the order in which they look at an event."""


def rule(
    code: str, *kinds: Kind, default: bool = True
) -> Callable[[Callable[[Event], Outcome]], Callable[[Event], Outcome]]:
    """Register a rule for events of these kinds."""

    def register(check: Callable[[Event], Outcome]) -> Callable[[Event], Outcome]:
        RULES[code] = Rule(code, kinds, check, default)
        return check

    return register


def table() -> str:
    """Return the rules as a Markdown table, for the documentation."""
    rows = ["| code | name | what it reports | on |", "|---|---|---|---|"]
    for code in sorted(RULES):
        told = RULES[code].documentation.split("\n\n", 1)[0].replace("\n", " ")
        on = "yes" if RULES[code].default else "with `--select`"
        rows.append(f"| {code} | {RULES[code].name} | {told} | {on} |")
    return "\n".join(rows)


_BY_KIND: dict[str, list[Rule]] = {}


def rules_on(kind: str) -> list[Rule]:
    """Return the rules that look at events of this kind."""
    if kind not in _BY_KIND:
        _BY_KIND[kind] = [r for r in RULES.values() if kind in r.kinds]
    return _BY_KIND[kind]


@rule("HSW201", "prepare", "enable", "load")
def prepare_after_compile(event: Event) -> Outcome:
    """The model is compiled before its adapters are prepared: the call is refused, or recompiles.

    PEFT's ``prepare_model_for_compiled_hotswap`` raises ``ValueError`` on the wrapper that
    ``torch.compile`` returns and on a model compiled in place. Where it does not notice (a replaced
    ``forward``, the unwrapped model), code that has run already is compiled again.

    Bad:
        model = PeftModel.from_pretrained(base, "adapter-a")
        model = torch.compile(model)
        prepare_model_for_compiled_hotswap(model, target_rank=64)

    Good:
        model = PeftModel.from_pretrained(base, "adapter-a")
        prepare_model_for_compiled_hotswap(model, target_rank=64)
        model = torch.compile(model)
    """
    facts, compiled = event.facts, event.facts.compiled
    how = event.prepared or facts.enabled
    if compiled is None or how is None or not how.strict:
        return None
    if event.kind == "load" and (facts.adapters or facts.enabled is None):
        return None
    if event.kind == "enable" and facts.adapters:
        return None
    refused = compiled.how == "in place" or (event.kind == "prepare" and event.wrapped)
    refused = refused or how.by == "hotswap"
    if not refused and facts.ran is None:
        return None
    verb = {
        "prepare": "prepared",
        "enable": "enabled for hot-swapping",
        "load": "prepared by this first load",
    }
    effect = (
        "the call raises"
        if refused and event.kind != "enable"
        else "it cannot be prepared without a recompile"
    )
    related = [(compiled.where, "compiled here")]
    if event.kind == "load":
        related.append((how.where, "hot-swapping was enabled here"))
    return Problem(
        f"the model is compiled already when it is {verb[event.kind]}: {effect}",
        "load the first adapter and prepare it, then call torch.compile",
        tuple(related),
    )


@rule("HSW202", "prepare")
def prepare_before_load(event: Event) -> Outcome:
    """The model has no adapter yet, so there is nothing to prepare: the call raises.

    PEFT prepares the LoRA layers that exist. diffusers and transformers are the other way round: there
    ``enable_lora_hotswap`` and ``enable_peft_hotswap`` come before the first load.

    Bad:
        prepare_model_for_compiled_hotswap(base, target_rank=64)
        model = PeftModel.from_pretrained(base, "adapter-a")

    Good:
        model = PeftModel.from_pretrained(base, "adapter-a")
        prepare_model_for_compiled_hotswap(model, target_rank=64)
    """
    facts = event.facts
    if facts.open or facts.adapters or facts.kind not in ("transformers", "component"):
        return None
    return Problem(
        "the model has no adapter when it is prepared: the call raises",
        "load the first adapter, then prepare the model that carries it",
    )


@rule("HSW213", "enable")
def enable_on_peft_model(event: Event) -> Outcome:
    """``enable_peft_hotswap`` is called on a ``PeftModel``: it is forwarded to the base model and raises.

    It is a method of transformers models that load their adapters themselves.

    Bad:
        model = PeftModel.from_pretrained(base, "adapter-a")
        model.enable_peft_hotswap(target_rank=64)

    Good:
        model = PeftModel.from_pretrained(base, "adapter-a")
        prepare_model_for_compiled_hotswap(model, target_rank=64)
    """
    if event.facts.kind != "peft":
        return None
    return Problem(
        f"{event.api} is called on a PeftModel, where it always raises",
        "call prepare_model_for_compiled_hotswap(model, target_rank=...) instead",
    )


@rule("HSW203", "enable")
def enable_after_load(event: Event) -> Outcome:
    """Hot-swapping is enabled after an adapter was loaded: the call raises ``RuntimeError``.

    ``enable_lora_hotswap`` (diffusers) and ``enable_peft_hotswap`` (transformers) only note what the
    first load has to prepare. With ``check_compiled="warn"`` they say less, and prepare nothing.

    Bad:
        pipe.load_lora_weights("adapter-a", adapter_name="style")
        pipe.enable_lora_hotswap(target_rank=64)

    Good:
        pipe.enable_lora_hotswap(target_rank=64)
        pipe.load_lora_weights("adapter-a", adapter_name="style")
    """
    facts, how = event.facts, event.prepared
    if not facts.adapters or how is None or not how.strict:
        return None
    return Problem(
        f"{event.api} is called after an adapter was loaded: it raises",
        f"call {event.api} before the first adapter is loaded",
        ((facts.adapters[0].where, "loaded here"),),
    )


@rule("HSW204", "prepare", "enable", "load", "swap")
def target_rank_too_small(event: Event) -> Outcome:
    """The target rank is below the rank of an adapter that the file shows.

    Below the loaded adapter's rank, preparing raises; below a later one, PEFT replaces the parameter
    and the model recompiles, silently. Ranks are read from ``LoraConfig(r=...)``, from lists of ranks,
    from adapter folders whose literal paths exist, and from names such as ``style-rank64``.

    Bad:
        ranks = [8, 64]
        prepare_model_for_compiled_hotswap(model, target_rank=min(ranks))

    Good:
        ranks = [8, 64]
        prepare_model_for_compiled_hotswap(model, target_rank=max(ranks))
    """
    if event.kind in ("prepare", "enable"):
        how = event.prepared
        if how is None or how.rank is None:
            return None
        if how.drawn_from and max(how.drawn_from) > how.rank:
            return _too_small(how.rank, max(how.drawn_from), "the list it is taken from", ())
        if event.kind == "prepare":
            for old in event.facts.adapters:
                rank = old.shape.rank
                if rank is not None and rank > how.rank:
                    there = ((old.where, f"rank {rank} is loaded here"),)
                    return _too_small(how.rank, rank, "the loaded adapter", there)
        return None
    adapter = event.facts.adapter(event.name) if event.kind == "swap" else None
    how = adapter.prepared if adapter else event.facts.enabled if event.kind == "load" else None
    if event.kind == "swap" and how is None and event.named is not False and event.name is None:
        how = event.facts.prepared
    rank = event.shape.rank
    if how is None or how.rank is None or rank is None or rank <= how.rank:
        return None
    found = _too_small(how.rank, rank, "an adapter", ((event.node, f"an adapter of rank {rank}"),))
    return Problem(found.message, found.remedy, found.related, where=how.where)


def _too_small(
    target: int, rank: int, what: str, related: tuple[tuple[ast.AST, str], ...]
) -> Problem:
    return Problem(
        f"target_rank is {target}, but {what} has rank {rank}",
        f"use the largest rank of all adapters: target_rank={rank} or more",
        related,
    )


@rule("HSW207", "swap")
def hotswap_without_name(event: Event) -> Outcome:
    """A hot swap does not say which adapter it replaces: the call raises.

    Without ``adapter_name`` diffusers makes up a new name, ``default_1``, for which there is no slot;
    that is so even if the first adapter was loaded without a name.

    Bad:
        pipe.load_lora_weights("adapter-a")
        pipe.load_lora_weights("adapter-b", hotswap=True)

    Good:
        pipe.load_lora_weights("adapter-a", adapter_name="style")
        pipe.load_lora_weights("adapter-b", adapter_name="style", hotswap=True)
    """
    if event.named is not False:
        return None
    return Problem(
        f"{event.api} hot-swaps without adapter_name: it raises",
        "give the name of the loaded adapter that is to be replaced",
        tuple((a.where, "loaded here") for a in event.facts.adapters[:1]),
    )


@rule("HSW209", "swap")
def first_load_is_swap(event: Event) -> Outcome:
    """The first load is a hot swap: there is no adapter to replace, and the call raises.

    Bad:
        for path in paths:
            pipe.load_lora_weights(path, adapter_name="style", hotswap=True)

    Good:
        for index, path in enumerate(paths):
            pipe.load_lora_weights(path, adapter_name="style", hotswap=index > 0)
    """
    facts = event.facts
    if facts.open or facts.adapters:
        return VETO if event.facts.adapters and not facts.open else None
    if facts.kind not in ("pipeline", "component", "transformers"):
        return None
    return Problem(
        "the first adapter is hot-swapped in, but none is loaded: it raises",
        "load the first adapter without hot-swapping, the later ones with it",
    )


@rule("HSW208", "swap")
def hotswap_unknown_name(event: Event) -> Outcome:
    """A hot swap names an adapter that was never loaded on this model: the call raises.

    Bad:
        pipe.load_lora_weights("adapter-a", adapter_name="first")
        pipe.load_lora_weights("adapter-b", adapter_name="second", hotswap=True)

    Good:
        pipe.load_lora_weights("adapter-a", adapter_name="style")
        pipe.load_lora_weights("adapter-b", adapter_name="style", hotswap=True)
    """
    names = event.facts.names
    if not names or event.name is None:
        return None
    if event.name in names:
        return VETO
    return Problem(
        f"adapter {event.name!r} is hot-swapped, but only {', '.join(map(repr, names))} is loaded",
        f"swap {names[-1]!r}, or load {event.name!r} first",
        tuple((a.where, f"{a.name!r} is loaded here") for a in event.facts.adapters),
    )


@rule("HSW211", "swap")
def swap_while_merged(event: Event) -> Outcome:
    """An adapter is swapped while it is merged into the base weights.

    PEFT 0.21.2 raises ``ValueError``; versions before it change nothing, without a word.

    Bad:
        model.merge_adapter()
        hotswap_adapter(model, "adapter-b", adapter_name="default")

    Good:
        model.unmerge_adapter()
        hotswap_adapter(model, "adapter-b", adapter_name="default")
    """
    if event.facts.merged is None:
        return None
    undo = "unfuse_lora()" if "lora" in event.api else "unmerge_adapter()"
    return Problem(
        "the adapter is swapped while it is merged into the base weights",
        f"call {undo} before the swap",
        ((event.facts.merged, "merged here"),),
    )


@rule("HSW205", "swap")
def swap_unprepared_on_compiled(event: Event) -> Outcome:
    """A compiled model swaps an adapter that was never prepared.

    Every adapter with another rank or another alpha costs a recompile, until torch gives up compiling.
    Silent if the file shows equal ranks, and no alphas that differ.

    Bad:
        model = PeftModel.from_pretrained(base, "adapter-a")
        model = torch.compile(model)
        model(**inputs)
        hotswap_adapter(model, "adapter-b", adapter_name="default")

    Good:
        model = PeftModel.from_pretrained(base, "adapter-a")
        prepare_model_for_compiled_hotswap(model, target_rank=64)
        model = torch.compile(model)
        model(**inputs)
        hotswap_adapter(model, "adapter-b", adapter_name="default")
    """
    facts = event.facts
    if facts.open or facts.compiled is None:
        return VETO if facts.open or facts.prepared else None
    adapter = facts.adapter(event.name)
    if adapter is None or adapter.prepared:
        return VETO if adapter else None
    if facts.enabled:  # too late, which has been said where it was enabled
        return None
    if adapter.shape.seems(event.shape):
        return VETO
    first = (
        "enable_lora_hotswap" if facts.kind == "component" else "prepare_model_for_compiled_hotswap"
    )
    if facts.kind == "transformers":
        first = "enable_peft_hotswap"
    when = "before the first load" if first.startswith("enable") else "before torch.compile"
    return Problem(
        "the adapter is swapped on a compiled model that was not prepared: another rank or alpha recompiles",
        f"call {first}(target_rank=...) {when}",
        ((facts.compiled.where, "compiled here"), (adapter.where, "loaded unprepared here")),
    )


@rule("HSW216", "load")
def name_already_loaded(event: Event) -> Outcome:
    """A name that is loaded is loaded again without hot-swapping: the call raises.

    Only reported for models that are compiled or meant to hot-swap. transformers swaps a loaded name by
    itself once ``enable_peft_hotswap`` was called; PEFT copies the weights.

    Bad:
        pipe.enable_lora_hotswap(target_rank=64)
        pipe.load_lora_weights("adapter-a", adapter_name="style")
        pipe.load_lora_weights("adapter-b", adapter_name="style")

    Good:
        pipe.enable_lora_hotswap(target_rank=64)
        pipe.load_lora_weights("adapter-a", adapter_name="style")
        pipe.load_lora_weights("adapter-b", adapter_name="style", hotswap=True)
    """
    facts = event.facts
    old = facts.adapter(event.name) if event.name is not None and event.named else None
    if event.hotswap is not False or facts.kind == "peft":
        return None
    if old is None:
        return VETO
    if not (facts.intends_to_swap or facts.compiled):
        return None
    return Problem(
        f"adapter {event.name!r} is loaded already, and {event.api} is not told to hot-swap it: it raises",
        "pass hotswap=True",
        ((old.where, "loaded here"),),
    )


@rule("HSW206", "load")
def load_without_hotswap_on_compiled(event: Event) -> Outcome:
    """An adapter is loaded without hot-swapping into a model that is compiled: it recompiles.

    A plain load puts new layers, or new parameters, into the model. Not reported if nothing ran between
    compiling and a first load, if the model is compiled anew before it runs, or if the adapter is fused
    and unloaded before the next call.

    Bad:
        pipe.transformer.compile()
        pipe(prompt)
        pipe.load_lora_weights("adapter-b", adapter_name="style-b")

    Good:
        pipe.transformer.compile()
        pipe(prompt)
        pipe.load_lora_weights("adapter-b", adapter_name="style", hotswap=True)
    """
    facts = event.facts
    if event.hotswap is not False:
        return None
    if facts.compiled is None or (event.name is not None and facts.adapter(event.name)):
        return None
    if event.swaps_elsewhere and not facts.intends_to_swap:  # hot-swapping is an option, and off
        return None
    first = not facts.adapters
    if (first and facts.enabled) or (facts.ran is None and (first or not facts.intends_to_swap)):
        return None
    return Problem(
        "an adapter is loaded without hot-swapping into a compiled model, which then recompiles",
        "load it before torch.compile, or swap it in under the name of the loaded adapter",
        _seen(facts),
        until="run",
    )


def _seen(facts: Facts) -> tuple[tuple[ast.AST, str], ...]:
    related = []
    if facts.compiled:
        related.append((facts.compiled.where, "compiled here"))
    if facts.prepared:
        related.append((facts.prepared.where, "prepared here"))
    return tuple(related)


@rule("HSW210", "scale", "toggle")
def float_into_scaling(event: Event) -> Outcome:
    """A Python float replaces the scaling tensor of a prepared adapter, so the next swap recompiles.

    Preparing turns every ``scaling`` into a tensor. A float in its place becomes a constant of the
    compiled code again. PEFT's ``set_scale`` and ``unscale_layer`` do that, and so does diffusers'
    ``set_adapters``, even without weights and even before compiling. Silent for models that
    ``hotswap.prepare`` prepared: their scalings stay tensors.

    Bad:
        layer.scaling["default"] = 0.5
        pipe.set_adapters("style", adapter_weights=[0.5])

    Good:
        layer.scaling["default"].fill_(0.5)
    """
    facts = event.facts
    how = facts.prepared
    if how is None or how.by == "hotswap":
        return None
    if event.kind == "scale":
        if event.value != "float":
            return None
        what = (
            "a number is written into the scaling"
            if event.api == "scaling"
            else f"{event.api} writes a number into the scaling"
        )
        remedy = "fill the scaling tensor in place: scaling[name].fill_(value)"
    else:
        if event.api != "set_adapters" or not any(
            a.prepared for a in facts.adapters if event.names is None or a.name in event.names
        ):
            return None
        if facts.compiled and changes(event):
            return None
        what = "set_adapters writes numbers into the scalings"
        remedy = "set the strength before the first load, or fill the scaling tensors in place"
    return Problem(
        f"{what} that preparation made tensors: the next swap recompiles",
        remedy,
        _seen(facts),
        until="now" if facts.compiled else "compile",
    )


def changes(event: Event) -> bool:
    """Tell whether the call changes which adapters are active."""
    facts = event.facts
    if not event.api.startswith("set_adapter"):
        return True
    return len(facts.adapters) > 1 if event.names is None else set(event.names) != set(facts.active)


@rule("HSW212", "toggle")
def adapter_set_changed_on_compiled(event: Event) -> Outcome:
    """The set of active adapters changes on a compiled model, in a file that hot-swaps: it recompiles.

    Activating, disabling or deleting an adapter changes what the compiled code is guarded on. A hot
    swap keeps one adapter active and replaces its weights.

    Bad:
        pipe(prompt)
        pipe.set_adapters("style")

    Good:
        pipe(prompt)
        pipe.load_lora_weights("other", adapter_name="style", hotswap=True)
    """
    facts = event.facts
    if facts.compiled is None or not (facts.ran or facts.swapped) or not changes(event):
        return None
    if not facts.intends_to_swap and (event.swaps_elsewhere or not event.file_swaps):
        return None
    return Problem(
        f"{event.api} changes the active adapters of a compiled model, which then recompiles",
        "keep one adapter active and hot-swap its weights",
        _seen(facts),
        until="run",
    )


@rule("HSW214", "run")
def grad_mode_mismatch(event: Event) -> Outcome:
    """The warm-up and the later calls of a compiled model run in different gradient modes.

    Compiled code is guarded on the gradient mode, so the warm-up compiles one version and the first real
    call another. Only reported for models that hot-swap.

    Bad:
        with torch.no_grad():
            model(**inputs)
        hotswap_adapter(model, "adapter-b", adapter_name="default")
        model(**inputs)

    Good:
        with torch.no_grad():
            model(**inputs)
        hotswap_adapter(model, "adapter-b", adapter_name="default")
        with torch.no_grad():
            model(**inputs)
    """
    facts = event.facts
    if (
        facts.ran is None
        or not facts.intends_to_swap
        or event.grad is None
        or facts.ran.grad is None
    ):
        return None
    if event.grad == facts.ran.grad:
        return None
    return Problem(
        f"the compiled model runs under {_mode(event.grad)} here, "
        f"but was warmed up under {_mode(facts.ran.grad)}",
        "call it in the same gradient mode every time",
        ((facts.ran.where, "first called here"),),
    )


def _mode(mode: str) -> str:
    return "autograd" if mode == "grad" else f"torch.{mode}()"


@rule("HSW215", "compile")
def compile_in_loop(event: Event) -> Outcome:
    """A loop compiles the wrapper of ``torch.compile`` again on every turn, although it hot-swaps.

    ``torch.compile`` of a model that it has wrapped already returns a plain function: the next hot swap
    finds no adapter in it and raises.

    Bad:
        for path in paths:
            hotswap_adapter(model, path, adapter_name="default")
            model = torch.compile(model)

    Good:
        model = torch.compile(model)
        for path in paths:
            hotswap_adapter(model, path, adapter_name="default")
    """
    facts = event.facts
    again = facts.compiled is not None and facts.compiled.where is event.node
    if not again or not event.wrapped or not facts.intends_to_swap:
        return None
    return Problem(
        "the same model is compiled again on every turn of the loop: it becomes a plain function",
        "compile it once, before the loop; hot swaps need no new compile",
    )


@rule("HSW291", "toggle", default=False)
def adapter_toggle_on_compiled(event: Event) -> Outcome:
    """The active adapters of a compiled model change, in a file that does not hot-swap.

    Each set of adapters is compiled once; a hint only, since that may be intended.

    Bad:
        pipe.load_lora_weights("one", adapter_name="one")
        pipe.load_lora_weights("other", adapter_name="other")
        pipe.transformer.compile()
        pipe(prompt)
        pipe.set_adapters("one")

    Good:
        pipe.enable_lora_hotswap(target_rank=64)
        pipe.load_lora_weights("one", adapter_name="style")
        pipe.transformer.compile()
        pipe(prompt)
        pipe.load_lora_weights("other", adapter_name="style", hotswap=True)
    """
    facts = event.facts
    if facts.compiled is None or facts.ran is None or event.file_swaps or not changes(event):
        return None
    return Problem(
        f"{event.api} changes the active adapters of a compiled model, which then recompiles once",
        "hot-swap one adapter instead of activating another",
        _seen(facts),
        until="run",
    )


@rule("HSW292", "swap", default=False)
def swap_on_compiled_of_unknown_history(event: Event) -> Outcome:
    """A compiled model swaps an adapter, and the file does not show whether it was prepared.

    Bad:
        def swap(pipe):
            pipe.transformer.compile()
            pipe.load_lora_weights("b", adapter_name="style", hotswap=True)

    Good:
        def swap(pipe):
            pipe.enable_lora_hotswap(target_rank=64)
            pipe.load_lora_weights("a", adapter_name="style")
            pipe.transformer.compile()
            pipe.load_lora_weights("b", adapter_name="style", hotswap=True)
    """
    facts = event.facts
    if facts.compiled is None or not facts.open or facts.prepared or facts.enabled:
        return None
    return Problem(
        "a compiled model is hot-swapped, and nothing in this file prepares it",
        "make sure that it is prepared before it is compiled",
        _seen(facts),
    )
