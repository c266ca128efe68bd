"""Preparation done too early, too late, on the wrong model, or for too small a rank."""

from __future__ import annotations

import ast

from hotswap.lint.rules.rule import Outcome, rule, seen
from hotswap.lint.typestate import Event, Prepared, Problem

_DONE = {
    "prepare": "prepared",
    "enable": "enabled for hot-swapping",
    "load": "prepared by this first load",
}


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
    seen = compiled.how == "in place" or (event.kind == "prepare" and event.wrapped)
    refused = seen or how.by == "hotswap"
    if not refused and facts.ran is None:
        return None
    raises = refused and event.kind != "enable"
    effect = "the call raises" if raises else "it cannot be prepared without a recompile"
    enabled = ((how.where, "hot-swapping was enabled here"),) if event.kind == "load" else ()
    return Problem(
        f"the model is compiled already when it is {_DONE[event.kind]}: {effect}",
        "load the first adapter and prepare it, then call torch.compile",
        ((compiled.where, "compiled here"), *enabled),
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
    if facts.open or facts.adapters or facts.kind not in ("transformers", "component", "instance"):
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


@rule("HSW217", "package")
def package_of_one_adapter(event: Event) -> Outcome:
    """A model is packaged with its adapter compiled in, so that no other can be put in its place.

    AOTInductor writes small tensors, such as a scaling, into the code as numbers: what is swapped later is
    ignored in part, without an error. And without preparation the ranks and scalings of the adapter that is
    loaded are fixed, also in what ``torch.export.save`` writes. ``hotswap.export`` prepares, keeps constants
    apart and says in the package where they are.

    Bad:
        prepare_model_for_compiled_hotswap(model, target_rank=64)
        program = torch.export.export(model, args)
        torch._inductor.aoti_compile_and_package(program, package_path="model.pt2")

    Good:
        hotswap.prepare(model, target_rank=64)
        hotswap.export(model, args, "model.pt2")
    """
    facts = event.facts
    if (
        facts.open
        or not facts.adapters
        or facts.merged
        or (event.keeps is not False and facts.prepared)
    ):
        return None
    lost = "its constants are inlined" if facts.prepared else "it is not prepared"
    return Problem(
        f"the model is {event.api} with its adapter, but {lost}: it goes on serving that adapter",
        "use hotswap.export, or compile with always_keep_tensor_constants=True after preparing; "
        "merge the adapter if it is to stay",
        ((facts.adapters[0].where, "loaded here"), *seen(facts)),
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
    if event.kind in ("load", "swap"):
        how, rank = _promised(event), event.shape.rank
        if how is None or how.rank is None or rank is None or rank <= how.rank:
            return None
        there = ((event.node, f"an adapter of rank {rank}"),)
        return _too_small(how, rank, "an adapter", there)
    how = event.prepared
    if how is None or how.rank is None:
        return None
    if max(how.drawn_from, default=0) > how.rank:
        return _too_small(how, max(how.drawn_from), "the list it is taken from", ())
    for old in event.facts.adapters if event.kind == "prepare" else ():
        rank = old.shape.rank
        if rank is not None and rank > how.rank:
            there = ((old.where, f"rank {rank} is loaded here"),)
            return _too_small(how, rank, "the loaded adapter", there)
    return None


def _promised(event: Event) -> Prepared | None:
    """Return the preparation that the adapter of a load or a swap has to fit in."""
    if event.kind == "load":
        return event.facts.enabled
    adapter = event.facts.adapter(event.name)
    if adapter is not None and adapter.prepared:
        return adapter.prepared
    nameless = event.named is not False and event.name is None
    return event.facts.prepared if nameless else None


def _too_small(
    how: Prepared, rank: int, what: str, related: tuple[tuple[ast.AST, str], ...]
) -> Problem:
    return Problem(
        f"target_rank is {how.rank}, but {what} has rank {rank}",
        f"use the largest rank of all adapters: target_rank={rank} or more",
        related,
        where=how.where,
    )
