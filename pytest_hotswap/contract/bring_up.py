"""Bring a deployment up as far as its laws need it, or say in one sentence why it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from pytest_hotswap.contract.deployment import Broken, Deployment, brief

_D = TypeVar("_D", bound=Deployment)


def deploy(subject: Any, made: Callable[[], _D]) -> _D | Broken:
    """Make the deployment of a subject, and call it once.

    What keeps it from that is one sentence, not one a law: a Broken is returned then.
    """
    problem, remedy = "cannot be brought up", ""
    try:
        deployment = made()
        problem = "has a base model that does not run on the inputs"
        remedy = "; give the arguments of its forward by inputs(), or --inputs of hotswap verify"
        deployment.run(deployment.base)
        problem, remedy = "cannot be brought up", ""
        _ = deployment.compiled
    except Exception as error:  # whatever the subject raises
        torch._dynamo.reset()
        kind = "" if isinstance(error, pytest.UsageError) else f"{type(error).__name__}: "
        return Broken(f"{type(subject).__name__} {problem}: {kind}{brief(error)}{remedy}")
    return deployment
