"""Subject: one deployment under test. Subclass it, or any class with these methods will do."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import hotswap
from hotswap.errors import HotswapError
from pytest_hotswap.adapters.companions import Companions

if TYPE_CHECKING:
    import pytest


def usage_error(text: str) -> pytest.UsageError:
    """The error for a deployment that is described wrongly: pytest shows its sentence only."""
    import pytest

    return pytest.UsageError(text)


class Subject:
    """How a deployment loads, prepares, compiles, swaps and runs; the contract judges nothing else.

    ``adapters`` are globs, relative to the file of the class that sets them. ``unsupported`` maps a
    law, or ``"law[case]"``, to the reason why it does not apply: reported as "not applicable".
    """

    base: str | None = None
    adapters: str | Sequence[str] = ()
    backend = "eager"
    adapter_name = "default"
    unsupported: Mapping[str, str] = {}
    companions: Companions = "few"  # adapters that the contract writes inside of the plan
    plan: hotswap.SwapPlan | None = None  # the fleet's own where None
    made_with: tuple[tuple[Any, ...], dict[str, Any]]
    thread_safe = False  # whether swaps and calls may run in several threads at once
    refused: Sequence[Path] = ()  # adapters that swap() must go on refusing
    inputs_told: str | None = None  # what inputs() were made of, where nobody gave them

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Keep what it is built with, which a script that reproduces a failure repeats."""
        self = super().__new__(cls)
        self.made_with = (args, given)
        return self

    def __init__(
        self,
        *,
        base: str | None = None,
        adapters: Sequence[str] | None = None,
        backend: str | None = None,
    ) -> None:
        self.base = base or self.base
        self.backend = backend or self.backend
        given = {"base": base, "adapters": adapters, "backend": backend}
        self.given = {name: value for name, value in given.items() if value is not None}

    def adapter_paths(self) -> list[Path]:
        """The adapter folders, sorted; raises pytest.UsageError when a glob matches nothing."""
        given = self.given.get("adapters")
        globs = self.adapters if given is None else given
        globs = [globs] if isinstance(globs, str) else list(globs)
        if not globs:
            raise usage_error(
                f"{type(self).__name__} has no adapters; set `adapters` or give --hotswap-adapters"
            )
        folder = self._home() if given is None else Path.cwd()
        found: list[Path] = []
        for pattern in globs:
            matches = sorted(glob.glob(str(folder / pattern)))
            if not matches:
                name = f"{type(self).__name__}.adapters" if given is None else "--hotswap-adapters"
                raise usage_error(f"{name} {pattern}: matches nothing in {folder}")
            found += [Path(match) for match in matches]
        return list(dict.fromkeys(found))

    def _home(self) -> Path:
        for cls in type(self).__mro__:
            if "adapters" in vars(cls):
                return Path(inspect.getfile(cls)).resolve().parent
        return Path.cwd()

    def base_model(self) -> Any:
        """A fresh base model; two calls give equal models."""
        if self.base is None:
            raise usage_error(
                f"{type(self).__name__} has no base model; define base_model() or give "
                "--hotswap-base"
            )
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.base)
        name = (config.architectures or [""])[0]
        cls = getattr(transformers, name, transformers.AutoModel)
        return cls.from_pretrained(self.base).eval()

    def inputs(self) -> Mapping[str, Any]:
        """The arguments of a forward; by default what the model's config and saved files suggest."""
        from hotswap.checks.inputs import made_inputs

        try:
            made = made_inputs(self.base_model(), self.base)
            self.inputs_told = f"{made.told}; --inputs FILE judges your own"
            return made.given
        except (HotswapError, AttributeError) as error:
            raise usage_error(
                f"{error}; define {type(self).__name__}.inputs(), or give "
                "hotswap verify --inputs FILE"
            ) from error

    def load(self, base: Any, adapter: Path) -> Any:
        """Load the first adapter the way the deployment does; the default is PEFT's."""
        from peft import PeftModel

        return PeftModel.from_pretrained(base, adapter, adapter_name=self.adapter_name).eval()

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        """Prepare the loaded model in place, before it is compiled."""
        raise NotImplementedError(f"{type(self).__name__}.prepare")

    def compile(self, model: Any) -> Any:
        """Compile the prepared model."""
        import torch

        return torch.compile(model, backend=self.backend)

    def swap(self, model: Any, adapter: Path | None) -> None:
        """Swap an adapter in; None is the base model. ``model`` is what compile() returned."""
        raise NotImplementedError(f"{type(self).__name__}.swap")

    def run(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """Run the model without gradients."""
        import torch

        with torch.no_grad():
            return model(**inputs)

    def restored(self, model: Any) -> None:
        """Be told that the model was brought back to how it was after its first call, not by a swap.

        A deployment that remembers outside of the model which adapter is in place forgets it here.
        """

    def models(self, model: Any) -> list[Any]:
        """The modules to fingerprint and to name at fault."""
        from hotswap.compiler.regions import unwrap

        return [unwrap(model)]

    def add(self, model: Any, adapter: Path, name: str) -> None:
        """Load another adapter under a name of its own, without making it the active one."""
        self.models(model)[0].load_adapter(str(adapter), name)

    def remove(self, model: Any, name: str) -> None:
        """Take away what add() has loaded."""
        self.models(model)[0].delete_adapter(name)

    def set_scale(self, model: Any, scale: float) -> None:
        """Scale the adapter in place; PEFT's own function by default."""
        from hotswap.engine.layout.slots import lora_layers

        for layer in lora_layers(model, self.adapter_name).values():
            layer.set_scale(self.adapter_name, scale)

    def disabled(self, model: Any) -> AbstractContextManager[Any]:
        """A scope in which the adapter has no effect."""
        context: AbstractContextManager[Any] = self.models(model)[0].disable_adapter()
        return context

    def save(self, model: Any, folder: Path) -> None:
        """Save the adapter in place as a PEFT folder."""
        self.models(model)[0].save_pretrained(folder, selected_adapters=[self.adapter_name])
