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
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import hotswap
from hotswap.cli.fleet import files_of, read_fleet, read_values
from hotswap.cli.verify.handover import COLLECTED, Handover
from pytest_hotswap.reporting import PREFIX

MOST_SAMPLES = 200
"""Swap times kept of one adapter in one test: a random walk makes hundreds."""
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
        self._times: defaultdict[str, list[float]] = defaultdict(list)
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
        """Say how many tests there are, for the line of progress; each worker of xdist has all of them."""
        if self._folder is not None and session.items:
            (self._folder / COLLECTED).write_text(str(len(session.items)), encoding="utf-8")

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
            subject.swap = self._timed(subject.swap)  # type: ignore[method-assign]
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
        with self._noted(item, "setup"):
            return (yield)

    @pytest.hookimpl(wrapper=True, specname="pytest_runtest_call")
    def pytest_watched_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note what the test compiles and swaps; in the first one, where it runs."""
        deployment = getattr(item, "funcargs", {}).get("deployment")
        if self._subject is not None and deployment is not None:
            _note(item, "environment", environment(self._subject, deployment.base))
            _note(item, "files", self._files)
            self._subject = None
            gc.freeze()  # each copy of a model would make the collector look at all that is imported
        with self._noted(item, "call"):
            try:
                return (yield)
            except (Exception, pytest.fail.Exception):
                if (alone := passes_alone(item)) is not None:
                    item.user_properties.append((f"{PREFIX}alone", alone))
                raise

    @contextmanager
    def _noted(self, item: pytest.Item, phase: str) -> Iterator[None]:
        self._times.clear()
        with hotswap.watch_compiles() as log:
            try:
                yield
            finally:
                deployment = getattr(item, "funcargs", {}).get("deployment")
                unprepared = getattr(deployment, "__dict__", {}).get("unprepared_recompiles", {})
                provoked = {text for texts in unprepared.values() for text in texts}
                kinds = {"first": log.first_compiles, "recompile": log.recompiles}
                compiles = [
                    {
                        "kind": kind,
                        "region": found.region,
                        "sentence": found.sentence,
                        "cause": found.cause,
                        "seconds": round(found.seconds, 4),
                        "provoked": str(found) in provoked,
                    }
                    for kind, many in {**kinds, "failed": log.failed}.items()
                    for found in many
                ]
                _note(item, f"compiles_in_{phase}", compiles)
                _note(item, "swap_times", {name: ts for name, ts in self._times.items() if ts})

    def _timed(self, swap: Callable[..., None]) -> Callable[..., None]:
        def timed(model: Any, adapter: Path | None) -> None:
            start = time.perf_counter()
            swap(model, adapter)
            seconds = time.perf_counter() - start
            times = self._times[adapter.name if adapter else ""]
            if adapter is not None and len(times) < MOST_SAMPLES:
                times.append(round(seconds, 7))

        return timed


def _note(item: pytest.Item, key: str, value: Any) -> None:
    if value:
        item.user_properties.append((f"{PREFIX}{key}", json.dumps(value)))


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


def adapt(subject: Any, settings: Handover) -> None:
    """Change a subject in place to what was asked for; what was not asked for stays its own."""
    if not settings.own_adapters:
        subject.refused = tuple(Path(path) for path in settings.refused)
    if settings.plan:
        subject.plan = hotswap.SwapPlan.read(settings.plan)
    if settings.package:
        subject.package = settings.package
    if settings.device or settings.dtype:
        _place(subject, settings)
    if settings.inputs:
        _feed(subject, settings.inputs)
    if settings.compile_mode or settings.regional:
        subject.compile = lambda model: _compile(subject, model, settings)


def _place(subject: Any, settings: Handover) -> None:
    import torch

    base_model, inputs = subject.base_model, subject.inputs
    dtype = getattr(torch, settings.dtype) if settings.dtype else None

    def placed(thing: Any) -> Any:
        if not isinstance(thing, torch.Tensor):
            return thing
        return thing.to(settings.device, dtype if thing.is_floating_point() else None)

    subject.base_model = lambda: base_model().to(device=settings.device, dtype=dtype)
    subject.inputs = lambda: {key: placed(value) for key, value in inputs().items()}


def _feed(subject: Any, path: str) -> None:
    from safetensors.torch import load_file

    from hotswap.checks.inputs import problem_of_inputs

    def inputs() -> dict[str, Any]:
        model = subject.base_model()
        device = next(model.parameters()).device
        fed: dict[str, Any] = {key: value.to(device) for key, value in load_file(path).items()}
        if problem := problem_of_inputs(model, fed):
            raise pytest.UsageError(f"--inputs {path}: {problem}")
        if hasattr(getattr(model, "config", None), "use_cache"):
            fed["use_cache"] = False  # a cache is guarded on, and is wrong after a swap
        return fed

    subject.inputs = inputs


def _compile(subject: Any, model: Any, settings: Handover) -> Any:
    import torch

    options = {"backend": subject.backend, "mode": settings.compile_mode}
    if not settings.regional:
        return torch.compile(model, **options)
    for block in repeated_blocks(model):
        block.compile(**options, isolate_recompiles=True)
    return model


def repeated_blocks(model: Any) -> list[Any]:
    """The blocks that regional compilation compiles: the members of the longest ModuleLists.

    Raises ValueError for a model without any.
    """
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    longest = max(map(len, lists), default=0)
    if longest < 2:
        raise ValueError("--regional: the model has no ModuleList of repeated blocks")
    return [block for found in lists if len(found) == longest for block in found]


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
