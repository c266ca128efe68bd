"""Parameters that an adapter targets directly: PEFT puts a wrapper for each around the one before it.

So an adapter that targets fewer parameters of a module than another has other names for the same of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations

from hotswap.adapters.modules import ModuleSpec
from hotswap.adapters.names import owner
from hotswap.adapters.plan import ModulePlan
from hotswap.adapters.spec import AdapterSpec

Wrapper = ModuleSpec | ModulePlan


def most_nested(specs: Iterable[AdapterSpec]) -> dict[str, Wrapper]:
    """The wrappers of every module that some adapters target the parameters of, where they are most."""
    found: dict[str, list[tuple[str, Wrapper]]] = {}
    for spec in specs:
        for module, own in _wrappers(spec.modules).items():
            if len(own) > len(found.get(module, ())):
                found[module] = own
    return {name: wrapper for own in found.values() for name, wrapper in own}


def renamed_wrappers(spec: AdapterSpec, modules: Mapping[str, Wrapper]) -> dict[str, str]:
    """New names for the wrappers of an adapter among those of a plan that has more parameters.

    The order is the same; which are left out is told by their features. None where that is not clear.
    """
    names: dict[str, str] = {}
    theirs = _wrappers(modules) if spec.config.get("target_parameters") else {}
    for module, mine in _wrappers(spec.modules).items() if theirs else ():
        others = theirs.get(module, [])
        if len(mine) >= len(others) or not {*mine[0][1].parameters} < {*others[0][1].parameters}:
            continue
        found = [
            chosen
            for chosen in combinations(others, len(mine))
            if [*map(_features, mine)] == [*map(_features, chosen)]
        ]
        if len(found) == 1:
            names |= {old: new for (old, _), (new, _) in zip(mine, found[0], strict=True)}
    return names


def nested_as(spec: AdapterSpec, modules: Mapping[str, Wrapper]) -> AdapterSpec:
    """The adapter with the names that a plan has for its wrappers of parameters."""
    names = renamed_wrappers(spec, modules)
    if not names:
        return spec
    renamed = {names.get(name, name): module for name, module in spec.modules.items()}
    return replace(spec, modules=dict(sorted(renamed.items())))


def _wrappers(modules: Mapping[str, Wrapper]) -> dict[str, list[tuple[str, Wrapper]]]:
    """The wrappers of each module, the outermost first."""
    found: dict[str, list[tuple[str, Wrapper]]] = defaultdict(list)
    for name, module in modules.items():
        if module.kind == "parameter":
            found[owner(name)].append((name, module))
    return {module: sorted(own, key=lambda each: len(each[0])) for module, own in found.items()}


def _features(named: tuple[str, Wrapper]) -> tuple[int, int, int]:
    return named[1].in_features, named[1].out_features, named[1].experts
