"""The list of faulty engines, and how one is put on it."""

from __future__ import annotations

from typing import Any

import torch

from tests.mutants.subject import Engine

ENGINES: list[type[Engine]] = []


def breaks(law: str, **more: Any) -> Any:
    """Register a faulty engine under the law that it breaks."""

    def register(engine: type[Engine]) -> type[Engine]:
        engine.law = law
        for name, value in more.items():
            setattr(engine, name, value)
        ENGINES.append(engine)
        return engine

    return register


def scale_all(engine: Engine, model: Any, number: Any) -> None:
    """Write every scaling by ``number(layer, adapter_name)``."""
    for layer in engine.layers(model).values():
        with torch.no_grad():
            layer.scaling[engine.adapter_name].fill_(number(layer, engine.adapter_name))
