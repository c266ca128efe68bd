"""judge: one law on a deployment that stands, without a test run around it."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_hotswap.contract.contract import CASES, HotswapContract, LawName
from pytest_hotswap.contract.deployment import Deployment

_Failed = pytest.fail.Exception


def names_of(law: str, *, controls: bool = False) -> list[str]:
    """The tests of a law, or its controls, without those that draw examples."""
    role = "control" if controls else "law"
    return [
        test
        for test in dir(HotswapContract)
        if test.startswith("test_")
        and (LawName.of(test).law, LawName.of(test).role) == (law, role)
        and not hasattr(getattr(HotswapContract, test), "draws_examples")
    ]


class Violation(str):
    """How a law is broken, in one sentence.

    ``raised`` is what the subject raised where the law expects it to work: the law itself has seen
    nothing wrong then.
    """

    raised: Exception | None = None


def violations(deployment: Deployment, law: str, *, controls: bool = False) -> Iterator[Violation]:
    """Say, one after the other, how the deployment breaks a law; nothing where it obeys."""
    for name in names_of(law, controls=controls):
        if LawName.of(name).excuse(deployment.subject):
            continue
        test = getattr(HotswapContract(), name)
        for arguments in _arguments(test, deployment):
            try:
                if "swapping" in arguments:
                    deployment.restore()
                test(**arguments)
            except pytest.skip.Exception:
                continue
            except (AssertionError, _Failed) as error:
                yield Violation(str(error) or f"{law}: {name} failed")
            except Exception as error:
                found = Violation(f"{law}: {type(error).__name__}: {error}")
                found.raised = error
                yield found


def repeat(subject: Any, name: str, **case: str) -> None:
    """Bring a subject up and run one test of the contract on it, which raises what it finds.

    ``case`` says which of a test's cases: the name of an ``adapter``, a ``defect`` or a ``style``.
    """
    test = getattr(HotswapContract(), name)
    with tempfile.TemporaryDirectory(prefix="hotswap-") as folder:
        deployment = Deployment(subject, Path(folder))
        try:
            for arguments in _arguments(test, deployment):
                here = {k: getattr(v, "name", v) for k, v in arguments.items() if k in case}
                if here == case:
                    if "swapping" in arguments:
                        deployment.restore()
                    test(**arguments)
        finally:
            deployment.close()


def _arguments(test: Any, deployment: Deployment) -> Iterator[Mapping[str, Any]]:
    """What the fixtures of a test would give it, once for each parameter."""
    wanted = inspect.signature(test).parameters
    given: dict[str, Any] = {"record_property": lambda *_: None}
    given |= {"deployment": deployment, "swapping": deployment}
    cases = {"adapter": deployment.paths, **CASES}
    key = next((key for key in cases if key in wanted), "")
    for value in cases.get(key, (None,)):
        found = given | {key: value}
        yield {name: found[name] for name in wanted}
