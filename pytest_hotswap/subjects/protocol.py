"""SubjectProtocol: what the contract asks of a deployment that does not derive from Subject."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import hotswap


@runtime_checkable
class SubjectProtocol(Protocol):
    """A deployment under test. ``Subject`` has PEFT's behaviour for all of it but prepare() and swap().

    A *model* is what load() returned, or from compile() on what that returned; whatever its type is,
    models() says which torch modules it consists of.
    """

    adapter_name: str
    """The name of the adapter that is swapped: everything else must stay as it is."""

    backend: str
    """The backend of torch.compile."""

    unsupported: Mapping[str, str]
    """Law, or ``law[case]``, to the reason why it does not apply; it is then "not applicable"."""

    def adapter_paths(self) -> list[Path]:
        """The PEFT folders to swap between; the same ones at every call, in every process."""

    def base_model(self) -> Any:
        """A fresh base model, which PEFT can load an adapter into; two calls give equal models."""

    def inputs(self) -> Mapping[str, Any]:
        """The keyword arguments of a forward."""

    def load(self, base: Any, adapter: Path) -> Any:
        """Load the first adapter into a base model and return the model."""

    def prepare(self, model: Any, plan: hotswap.SwapPlan) -> None:
        """Prepare the loaded model in place."""

    def compile(self, model: Any) -> Any:
        """Compile the prepared model."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        """Swap an adapter in place; None is the base model. Raise to refuse it."""

    def run(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """Run the model, or PEFT's fresh load of an adapter, without gradients."""

    def models(self, model: Any) -> list[Any]:
        """The torch modules to fingerprint and to name at fault, the one that is called first."""

    def add(self, model: Any, adapter: Path, name: str) -> None:
        """Load another adapter under a name of its own, without making it the active one."""

    def remove(self, model: Any, name: str) -> None:
        """Take away what add() has loaded."""

    def set_scale(self, model: Any, scale: float) -> None:
        """Scale the adapter in place: 1.0 is as it was trained."""

    def disabled(self, model: Any) -> AbstractContextManager[Any]:
        """A scope in which the adapter has no effect."""

    def save(self, model: Any, folder: Path) -> None:
        """Save the adapter in place as a PEFT folder."""


def missing(subject: Any) -> list[str]:
    """The members of the protocol that an object has not; empty exactly where isinstance() holds."""
    members = {*SubjectProtocol.__annotations__, *vars(SubjectProtocol)}
    public = sorted(name for name in members if not name.startswith("_"))
    return [name for name in public if not hasattr(subject, name)]
