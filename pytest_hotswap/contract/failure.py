"""What a law that failed says besides: what to do, how to repeat it, and a script that does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hotswap.report.laws import CONTROL_REMEDY, REMEDIES
from pytest_hotswap.contract.contract import HotswapContract, LawName
from pytest_hotswap.subjects.written import beginning

ADAPTED: pytest.StashKey[str | None] = pytest.StashKey()
"""A line of Python that adapts ``subject`` as this session does; None where nothing of it outlives it."""


def is_of_the_law(call: pytest.CallInfo[None]) -> bool:
    """Whether the contract itself raised, so that its frames say nothing; and not the subject's code."""
    if call.when != "call" or call.excinfo is None:
        return False
    own = Path(call.excinfo.traceback[-1].path).parent == Path(__file__).parent
    return isinstance(call.excinfo.value, pytest.fail.Exception) or (
        own and isinstance(call.excinfo.value, AssertionError)
    )


def keep_the_sentence(error: BaseException) -> None:
    """Take what pytest adds to a law's assertion off it: "assert False", and where that comes from."""
    if isinstance(error, AssertionError) and error.args:
        error.args = (str(error.args[0]).partition("\nassert ")[0],)


def what_to_do(item: pytest.Item, error: BaseException) -> str:
    """What the deployment has to do, and the command that repeats just this test.

    A test of one law may find that another is broken, with which its sentence begins.
    """
    name, broken = LawName.of(_test(item)), str(error).partition(":")[0]
    remedy = REMEDIES.get(broken, REMEDIES.get(name.law, ""))
    remedy = CONTROL_REMEDY if name.role == "control" else remedy
    again = f"just this one again: pytest {item.nodeid!r}"
    return "\n".join(filter(None, [remedy, again]))


def script(item: pytest.Item, error: BaseException) -> str | None:
    """A script that runs just this test of the contract on this subject; None where none would.

    That is so for a test that is not of the contract itself, and a subject that does not outlive the session.
    """
    adapted = item.config.stash.get(ADAPTED, "")
    given: dict[str, Any] = getattr(item, "funcargs", {})
    deployment = given.get("deployment")
    if adapted is None or deployment is None or not hasattr(HotswapContract, _test(item)):
        return None
    case: dict[str, str] = {key: given[key] for key in ("defect", "style") if key in given}
    if "adapter" in given:
        case["adapter"] = given["adapter"].name
    imports = ["from pytest_hotswap.contract.judge import repeat"]
    first, built = beginning(str(error).partition("\n")[0], imports, deployment.subject)
    words = ["subject", repr(_test(item)), *(f"{key}={value!r}" for key, value in case.items())]
    lines = [f"subject = {built}", *filter(None, [adapted]), f"repeat({', '.join(words)})"]
    return "\n".join([*first, *lines, ""])


def _test(item: pytest.Item) -> str:
    return str(getattr(item, "originalname", item.name))
