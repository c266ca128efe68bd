"""What a rank does for the contract: it brings the deployment up, and judges a law when it is told to."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from hotswap.cli.verify.handover import Handover
from hotswap.compiler.shards import default_store, local_of
from hotswap.errors import RankError
from pytest_hotswap.contract.bring_up import deploy
from pytest_hotswap.contract.deployment import Broken, Deployment, T
from pytest_hotswap.contract.notes import Notes
from pytest_hotswap.ranks.lockstep import InStep, Lockstep, PartedError
from pytest_hotswap.ranks.pool import HERE
from pytest_hotswap.subjects.adapted import adapt
from pytest_hotswap.subjects.base import usage_error
from pytest_hotswap.subjects.located import load_class


@dataclass(frozen=True)
class Outcome:
    """What has come of a law on one rank; ``consequence``: how likely it failed because another did."""

    outcome: Literal["passed", "failed", "skipped"]
    text: str
    consequence: int
    properties: list[tuple[str, Any]]


class RankDeployment(Deployment):
    """The part of a deployment that one rank has, and an oracle that is whole."""

    runs_alone = False

    def __init__(self, subject: Any, folder: Path, lockstep: Lockstep) -> None:
        self.lockstep = lockstep
        super().__init__(subject, folder)
        first, *others = lockstep.meet(
            "inputs", {name: _told(v) for name, v in self.inputs.items()}
        )
        for rank, found in enumerate(others, 1):
            if found != first:
                raise usage_error(
                    f"inputs() gives rank {rank} others than rank 0; draw them from a generator "
                    "with a seed"
                )

    def as_one(self) -> AbstractContextManager[None]:
        """A scope that fails on every rank if it fails on one."""
        return self.lockstep.as_one()

    def agreed(self, value: T) -> T:
        """The value of the first rank, which JSON can hold; of truth values whether all are true."""
        found = self.lockstep.meet("agree", value)
        agreed: Any = all(found) if isinstance(value, bool) else found[0]
        return agreed  # type: ignore[no-any-return]

    def difference(self, *_: Any, **__: Any) -> None:
        """Name nothing: an output of a module that is cut is another one on each rank."""

    def widened(self, model: Any) -> Any:
        """Another model with the same values, in float64: a DTensor cannot be copied."""
        twin = self.prepared()
        ours, theirs = ([*each.parameters(), *each.buffers()] for each in (model, twin))
        for one, other in zip(ours, theirs, strict=True):
            local_of(other).data.copy_(local_of(one))
        return twin.double()


def _told(value: Any) -> str:
    return str(value.double().sum().item()) if hasattr(value, "double") else repr(value)


class _State:
    deployment: RankDeployment
    notes: Notes


_HERE = _State()


@dataclass(frozen=True)
class Order:
    """What a rank is told of a deployment; ``place`` is that of the subject's class."""

    place: str
    made_with: tuple[tuple[Any, ...], dict[str, Any]]
    paths: list[Path]
    attributes: dict[str, Any]
    settings: str | None  # the file of hotswap verify
    cwd: str
    folder: str
    examples: int


def bring_up(order: Order) -> str:
    """Build this rank's part of a deployment; why it cannot be brought up, or nothing."""
    import hypothesis

    close()
    os.chdir(order.cwd)
    hypothesis.settings.register_profile("ranks", derandomize=True, max_examples=order.examples)
    hypothesis.settings.load_profile("ranks")  # every rank draws the same
    args, keywords = order.made_with
    try:
        subject = load_class(order.place, Path.cwd())(*args, **keywords)
        vars(subject).update(order.attributes)
        adapt(subject, _settings(order.settings))
    except (Exception, pytest.UsageError) as error:
        return f"{type(error).__name__}: {error}"
    subject.adapter_paths = lambda: list(order.paths)
    _HERE.notes = Notes()
    subject.swap = _HERE.notes.timed(subject.swap)
    own = Path(order.folder) / f"rank-{HERE.rank}"
    own.mkdir(parents=True)
    lockstep = Lockstep(_store(order.folder))
    text = ""
    try:
        with lockstep.as_one():
            made = deploy(subject, lambda: RankDeployment(InStep(subject, lockstep), own, lockstep))
            if isinstance(made, Broken):
                text = made.text
                raise _BrokenError(text)
    except (_BrokenError, PartedError) as error:
        return text or str(error)
    _HERE.deployment = made
    return ""


def _store(name: str) -> Any:
    import torch.distributed as dist

    return dist.PrefixStore(name, default_store())  # type: ignore[attr-defined]


class _BrokenError(Exception):
    """The deployment cannot be brought up."""


def _settings(file: str | None) -> Handover:
    """What hotswap verify asks for, if it does, on this rank's device."""
    found = Handover.read(file) if file else Handover(own_adapters=True)
    return replace(found, device=f"cuda:{HERE.rank}") if HERE.backend == "nccl" else found


def judge(place: str, name: str, given: Mapping[str, Any]) -> Outcome:
    """Judge one test of a contract class; ``given`` are its parameters."""
    deployment = _HERE.deployment
    properties: list[tuple[str, Any]] = []
    item = SimpleNamespace(user_properties=properties, funcargs={"deployment": deployment})
    test = getattr(load_class(place, Path.cwd())(), name)
    known = {"deployment": deployment, "swapping": deployment, **given}
    known["record_property"] = lambda key, value: properties.append((key, value))
    wanted = inspect.signature(test).parameters
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    text, consequence = "", 0
    with _HERE.notes.taken(item, "call"):
        try:
            with deployment.lockstep.as_one():
                if "swapping" in wanted:
                    deployment.restore()
                test(**{key: known[key] for key in wanted})
        except pytest.skip.Exception as error:
            outcome, text = "skipped", str(error)
        except PartedError as error:
            outcome, text, consequence = "failed", str(error), 2
        except RankError as error:
            outcome, text, consequence = "failed", f"RankError: {error}", 1
        except (Exception, pytest.fail.Exception) as error:
            said = isinstance(error, AssertionError | pytest.fail.Exception)
            outcome, text = "failed", str(error) if said else f"{type(error).__name__}: {error}"
    return Outcome(outcome, text, consequence, properties)


def inputs_told() -> str | None:
    """What the inputs were made of, where nobody gave them."""
    return getattr(_HERE.deployment.subject, "inputs_told", None)


def close() -> None:
    """Forget the deployment."""
    if (deployment := vars(_HERE).pop("deployment", None)) is not None:
        deployment.close()
