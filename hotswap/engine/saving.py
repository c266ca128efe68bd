"""What a PeftModel over several devices saves: whole tensors, which its ranks put together."""

from __future__ import annotations

from functools import cache
from typing import Any

from hotswap.compiler.shards import local_of, whole_of
from hotswap.engine.layout.classes import derived
from hotswap.engine.mesh import together
from hotswap.engine.parts import parts_of


@cache
def prepared_model(cls: Any) -> Any:
    """Derive the class of a PeftModel over several devices: what is cut it saves whole.

    Every rank has to call ``save_pretrained`` then: it raises RankError on those that do, unless all do.
    """
    if hasattr(cls.save_pretrained, "whole"):
        return cls

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("state_dict") is None:
            every = kwargs.get("save_embedding_layers") is True
            state = self.state_dict()
            cut = {
                name: value
                for name, value in state.items()
                if (every or "lora_" in name) and local_of(value) is not value
            }
            if cut:
                with together(parts_of(self)) as agree:
                    agree(["save"], "save_pretrained()")  # nobody waits for ever in what follows
                    state |= {name: whole_of(value) for name, value in cut.items()}
            kwargs["state_dict"] = state
        cls.save_pretrained(self, *args, **kwargs)

    save_pretrained.whole = True  # type: ignore[attr-defined]
    save_pretrained.__doc__ = cls.save_pretrained.__doc__
    return derived(cls, prepared_model, save_pretrained=save_pretrained)
