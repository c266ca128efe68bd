"""Changes to a prepared or compiled model that are no swap: loads, toggles, scalings, modes, compiles."""

from __future__ import annotations

from hotswap.lint.rules.rule import FINE, Outcome, rule, seen
from hotswap.lint.typestate import Event, Problem


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
    old = facts.named(event.name, event.token) if event.named else None
    if event.hotswap is not False or facts.kind == "peft":
        return None
    if old is None:
        return FINE
    if not (facts.intends_to_swap or facts.compiled):
        return None
    what = f"adapter {event.name!r}" if event.name is not None else "the adapter of that name"
    return Problem(
        f"{what} is loaded already, and {event.api} is not told to hot-swap it: it raises",
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
    if facts.compiled is None or facts.named(event.name, event.token):
        return None
    if event.swaps_elsewhere and not facts.intends_to_swap:  # hot-swapping is an option, and off
        return None
    first = not facts.adapters
    if (first and facts.enabled) or (facts.ran is None and (first or not facts.intends_to_swap)):
        return None
    return Problem(
        "an adapter is loaded without hot-swapping into a compiled model, which then recompiles",
        "load it before torch.compile, or swap it in under the name of the loaded adapter",
        seen(facts),
        until="run",
    )


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
        direct = event.api == "scaling"
        what = "a number is written" if direct else f"{event.api} writes a number"
        what += " into the scaling"
        remedy = "fill the scaling tensor in place: scaling[name].fill_(value)"
    else:
        named = [a for a in facts.adapters if event.names is None or a.name in event.names]
        if event.api != "set_adapters" or not any(a.prepared for a in named):
            return None
        if facts.compiled and _changes_set(event):
            return None
        what = "set_adapters writes numbers into the scalings"
        remedy = "set the strength before the first load, or fill the scaling tensors in place"
    return Problem(
        f"{what} that preparation made tensors: the next swap recompiles",
        remedy,
        seen(facts),
        until="now" if facts.compiled else "compile",
    )


def _changes_set(event: Event) -> bool:
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
    if facts.compiled is None or not _changes_set(event):
        return None
    if not facts.intends_to_swap and (event.swaps_elsewhere or not event.file_swaps):
        return None
    unloads = event.api.startswith("unload")
    if not (facts.prepared if unloads else facts.ran or facts.swapped):
        return None  # of an adapter that is not prepared, the load was the mistake
    return Problem(
        f"{event.api} changes the active adapters of a compiled model, which then recompiles",
        "keep one adapter active and hot-swap its weights",
        seen(facts),
        until="call" if unloads else "run",
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
    ran, mode = facts.ran, event.grad
    if ran is None or ran.grad is None or mode in (None, ran.grad) or not facts.intends_to_swap:
        return None
    return Problem(
        f"the compiled model runs under {_mode(mode)} here, but was warmed up under {_mode(ran.grad)}",
        "call it in the same gradient mode every time",
        ((ran.where, "first called here"),),
    )


def _mode(mode: str | None) -> str:
    return "autograd" if mode == "grad" else f"torch.{mode}()"


@rule("HSW215", "compile")
def compile_in_loop(event: Event) -> Outcome:
    """What ``torch.compile`` returned is compiled again, in a loop or otherwise, although it hot-swaps.

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
    if facts.compiled is None or not event.wrapped or not facts.intends_to_swap:
        return None
    return Problem(
        "the model is compiled already, and its wrapper is compiled again: it becomes a plain function",
        "compile it once; hot swaps need no new compile",
        seen(facts)[:1],
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
    if facts.compiled is None or facts.ran is None or event.file_swaps or not _changes_set(event):
        return None
    return Problem(
        f"{event.api} changes the active adapters of a compiled model, which then recompiles once",
        "hot-swap one adapter instead of activating another",
        seen(facts),
        until="run",
    )
