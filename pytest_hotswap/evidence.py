"""A pytest plugin: runs the suite as the options of ``hotswap verify`` say, and notes what it saw.

Beside the outcome of a test the report needs what was compiled in it, how long each swap took, and
where it ran. All of it travels as the test's user properties, so xdist and a shard need nothing else.
"""

from __future__ import annotations

import gc
import inspect
import json
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from hotswap.cli.fleet import files_of, read_fleet, read_values
from hotswap.cli.verify.handover import COLLECTED, Handover
from hotswap.cli.verify.progress import kind_of
from pytest_hotswap.contract.notes import Notes, note
from pytest_hotswap.reporting import PREFIX
from pytest_hotswap.subjects.adapted import adapt

REFUSED = "test_swap_atomic__refused"
PACKAGES = ("torch", "peft", "transformers", "diffusers", "safetensors", "pytest-hotswap")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that carries the settings."""
    parser.addoption("--hotswap-settings", metavar="FILE", help="what hotswap verify asks for")


def pytest_configure(config: pytest.Config) -> None:
    """Start gathering."""
    path = config.getoption("--hotswap-settings")
    settings = Handover.read(path) if path else Handover()
    folder = Path(path).parent if path else None
    config.pluginmanager.register(Evidence(settings, folder), "hotswap-evidence-of-session")


class Evidence:
    """What one process notes while the suite runs in it."""

    def __init__(self, settings: Handover, folder: Path | None = None) -> None:
        self.settings = settings
        self._folder = folder
        self._notes = Notes()
        self._ready = False
        self._subject: Any = None
        self._files: dict[str, Any] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Read the files of a subject's own adapters, as those that are named on the command line were."""
        if self.settings.own_adapters:
            from pytest_hotswap.subjects.origin import resolve_subject

            with suppress(Exception):  # the collection meets it again, and reports it
                self._files = judge_files(resolve_subject(session.config))

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out the test of refused adapters where none is; run those of one adapter together."""
        items[:] = by_adapter(items)
        refused = any(finding["findings"] for finding in self._files.get("adapters", ()))
        if not (self.settings.refused or refused):
            idle = [item for item in items if item.name == REFUSED]
            items[:] = [item for item in items if item.name != REFUSED]
            config.hook.pytest_deselected(items=idle)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Say how many tests of each kind there are, for the line of progress; a worker of xdist has all."""
        if self._folder is not None and session.items:
            counts = Counter(kind_of(item.nodeid) for item in session.items)
            (self._folder / COLLECTED).write_text(json.dumps(counts), encoding="utf-8")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Leave out what the time budget has no room for; adapt the subject before it is used."""
        deadline = self.settings.deadline
        if deadline is not None and time.time() > deadline:
            pytest.skip(f"the time budget of {self.settings.budget} was used up")
        if not self._ready:
            self._ready = True
            from pytest_hotswap.contract.failure import ADAPTED
            from pytest_hotswap.subjects.origin import resolve_subject

            subject = resolve_subject(item.config)
            adapt(subject, self.settings)
            item.config.stash[ADAPTED] = self._adapted()
            subject.swap = self._notes.timed(subject.swap)  # type: ignore[method-assign]
            self._subject = subject

    def _adapted(self) -> str | None:
        """What a script has to do with a subject to have it as it is here."""
        kept = replace(self.settings, plan=self.settings.plan_file, deadline=None, refused=())
        if self.settings.temporary:
            return None
        if kept == Handover(own_adapters=kept.own_adapters):
            return ""
        return (
            f"from {Handover.__module__} import Handover\n"
            f"from {__name__} import adapt\n"
            f"adapt(subject, {kept!r})"
        )

    @pytest.hookimpl(wrapper=True, specname="pytest_runtest_setup")
    def pytest_watched_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note when the test starts, and what its fixtures compile."""
        item.user_properties.append(("hotswap.started", round(time.time(), 3)))
        with self._notes.taken(item, "setup"):
            return (yield)

    @pytest.hookimpl(wrapper=True, specname="pytest_runtest_call")
    def pytest_watched_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note what the test compiles and swaps; in the first one, where it runs."""
        deployment = getattr(item, "funcargs", {}).get("deployment")
        if self._subject is not None and deployment is not None:
            told = environment(self._subject, deployment.base)
            note(item, "environment", told | getattr(deployment, "told", {}))
            note(item, "files", self._files)
            self._subject = None
            gc.freeze()  # each copy of a model would make the collector look at all that is imported
        with self._notes.taken(item, "call"):
            try:
                return (yield)
            except (Exception, pytest.fail.Exception):
                if (alone := passes_alone(item)) is not None:
                    item.user_properties.append((f"{PREFIX}alone", alone))
                raise


def by_adapter(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests of an adapter one after the other, so that its fresh load serves all of them."""
    order: dict[Any, list[pytest.Item]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        order.setdefault(callspec.params.get("adapter") if callspec else None, []).append(item)
    return [item for group in order.values() for item in group]


def judge_files(subject: Any) -> dict[str, Any]:
    """What the files of a subject's adapters say; one that they show to be wrong is refused by name."""
    paths = [str(path) for path in subject.adapter_paths()]
    fleet = read_values(read_fleet(paths, getattr(subject, "plan", None)), paths)
    accepted = [Path(path) for path in paths if path not in fleet.refused]
    if accepted:
        subject.adapter_paths = lambda: accepted
        subject.refused = tuple(Path(path) for path in fleet.refused)
    return files_of(paths, paths, fleet)


def passes_alone(item: pytest.Item) -> bool | None:
    """Run a failed test of an adapter again as if there were no other one: guilt does not travel.

    None for a test that is not of one adapter among others.
    """
    given: dict[str, Any] = getattr(item, "funcargs", {})
    adapter, deployment = given.get("adapter"), given.get("swapping")
    if adapter is None or deployment is None or len(deployment.paths) < 2:
        return None
    alone: dict[str, Any] = {"paths": [adapter], "first": adapter}
    kept = {key: vars(deployment)[key] for key in (*alone, "rescaled") if key in vars(deployment)}
    vars(deployment).update(alone)
    vars(deployment).pop("rescaled", None)
    arguments = {**given, "record_property": lambda *_: None}
    test: Any = item
    try:
        deployment.restore()
        test.obj(**{name: arguments[name] for name in inspect.signature(test.obj).parameters})
    except (Exception, pytest.fail.Exception):
        return False
    finally:
        for key in (*alone, "rescaled"):
            vars(deployment).pop(key, None)
        vars(deployment).update(kept)
    return True


def environment(subject: Any, base: Any) -> dict[str, Any]:
    """Where the suite runs, and on what."""
    import torch

    found: dict[str, Any] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    parameter = next(base.parameters(), None)
    device, dtype = "none", "none"
    if parameter is not None:
        device, dtype = str(parameter.device), str(parameter.dtype).removeprefix("torch.")
    if device.startswith("cuda"):
        device = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        **found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": device,
        "dtype": dtype,
        "backend": str(subject.backend),
        "subject": f"{type(subject).__module__}:{type(subject).__qualname__}",
        "commit": commit(Path.cwd()),
        **({"inputs": told} if (told := getattr(subject, "inputs_told", None)) else {}),
    }


def commit(folder: Path) -> str:
    """The git commit that is checked out in a folder, and whether something was changed since."""
    git = shutil.which("git")
    if git is None:
        return ""

    def told(*words: str) -> str:
        done = subprocess.run(
            [git, *words], cwd=folder, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    found = told("rev-parse", "HEAD")
    return f"{found}, with changes" if found and told("status", "--porcelain") else found
