"""Swaps of an adapter that is not there, not prepared or merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hotswap.lint.rules.rule import FINE, Outcome, rule, seen
from hotswap.lint.typestate import Event, Node, Problem

_ENABLE = {"component": "enable_lora_hotswap", "transformers": "enable_peft_hotswap"}


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
        return FINE if event.facts.adapters and not facts.open else None
    if facts.kind not in ("pipeline", "component", "transformers"):
        return None
    return Problem(
        "the first adapter is hot-swapped in, but none is loaded: it raises",
        "load the first adapter without hot-swapping, the later ones with it",
        ((facts.removed.where, "loaded here, and removed since"),) if facts.removed else (),
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
    asked = event.among if event.name is None else (event.name,)
    if not names or not asked:
        return None
    if not {*names}.isdisjoint(asked):
        return None if event.name is None else FINE
    return other_name(asked, {str(a.name): a.where for a in event.facts.adapters})


def other_name(asked: Sequence[str], loaded: Mapping[str, Node]) -> Problem:
    """Say that no adapter of the names that are asked for is loaded, and which are."""
    names = [*loaded]
    one = f"adapter {asked[0]!r}"
    what = one if len(asked) == 1 else f"one of {', '.join(map(repr, asked))}"
    return Problem(
        f"{what} is hot-swapped, but only {', '.join(map(repr, names))} is loaded",
        f"swap {names[-1]!r}, or load {asked[0]!r} first",
        tuple((where, f"{name!r} is loaded here") for name, where in loaded.items()),
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
    Silent if the file shows equal ranks, and no alphas that differ. ``hotswap.swap`` and ``AdapterBank``
    refuse a model that is not prepared, compiled or not.

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
    refused = event.api.startswith("hotswap.")
    if facts.open or (facts.compiled is None and not refused):
        return FINE if facts.open or facts.prepared else None
    adapter = facts.adapter(event.name)
    if adapter is None or adapter.prepared:
        return FINE if adapter else None
    if refused:
        return Problem(
            f"the model was not prepared: {event.api} refuses it",
            "call hotswap.prepare(model, target_rank=...) before torch.compile",
            ((adapter.where, "loaded unprepared here"), *seen(facts)),
        )
    if facts.enabled or facts.compiled is None:  # too late has been said where it was enabled
        return None
    if adapter.shape.seems(event.shape):
        return FINE
    remedy = "call prepare_model_for_compiled_hotswap(target_rank=...) before torch.compile"
    enable = _ENABLE.get(facts.kind)
    if enable is not None:
        remedy = f"call {enable}(target_rank=...) before the first load"
    return Problem(
        "the adapter is swapped on a compiled model that was not prepared: another rank or alpha recompiles",
        remedy,
        ((facts.compiled.where, "compiled here"), (adapter.where, "loaded unprepared here")),
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
        seen(facts),
    )
