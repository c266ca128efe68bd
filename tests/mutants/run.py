"""Judge faulty engines: one by one law, or all by every law.

    python -m tests.mutants.run StaleRows swap-forgets    print how the engine breaks the law
    python -m tests.mutants.run                           print the full matrix as Markdown
    python -m tests.mutants.run --write                   write it into docs/mutants.md

The exit status is the number of faulty engines that are alive.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from hotswap.report.laws import LAWS
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import Violation, violations
from tests.mutants.engines import ENGINES
from tests.mutants.plain import Plain
from tests.mutants.subject import FLEETS, Engine, Whole, write_fleets

PAGE = Path(__file__).parent.parent.parent / "docs" / "mutants.md"
PACKAGES = ("peft", "torch")
SOUND: dict[str, type[Engine]] = {
    **dict.fromkeys(FLEETS, Engine),
    "plain": Plain,
    "wholes": Whole,
}
"""The sound engine that the faulty ones of a fleet derive from."""


class Bench:
    """The unmutated deployments, one a fleet, that faulty engines with a sound model share."""

    def __init__(self, folder: Path, fleets: Iterable[str] = SOUND) -> None:
        self.folder = folder
        write_fleets(folder)
        self.shared: dict[str, Deployment] = {}
        for fleet in fleets:
            engine = type("Sound", (SOUND[fleet],), {"fleet": fleet})
            self.shared[fleet] = Deployment(engine(folder), folder / f"sound-{fleet}")
            torch._dynamo.reset()  # it remembers numbers that have changed
            _ = self.shared[fleet].unprepared_recompiles
        for deployment in self.shared.values():
            deployment.restore()

    @contextmanager
    def of(self, engine: type[Engine]) -> Iterator[Deployment]:
        """A deployment of the faulty engine."""
        subject = engine(self.folder)
        if engine.own:
            with _as_before():
                yield Deployment(subject, Path(tempfile.mkdtemp(dir=self.folder)))
            return
        deployment = self.shared[engine.fleet]
        sound, deployment.subject = deployment.subject, subject
        try:
            with _as_before():
                yield deployment
        finally:
            deployment.subject = sound
            deployment.snapshot.restore()

    def killed_by(self, engine: type[Engine], law: str) -> Violation | None:
        """The first violation of a law by an engine, if there is one; one that the law saw comes first."""
        with self.of(engine) as deployment:
            return _first(deployment, law)

    def row(self, engine: type[Engine]) -> dict[str, Violation | None]:
        """The same for every law, on one deployment if the engine has one of its own."""
        if not engine.own:
            return {law: self.killed_by(engine, law) for law in LAWS}
        torch._dynamo.reset()
        with self.of(engine) as deployment:
            return {law: _first(deployment, law) for law in LAWS}


@contextmanager
def _as_before() -> Iterator[None]:
    """Bring back what a faulty engine has left of the process' settings."""
    limit, grad = torch._dynamo.config.recompile_limit, torch.is_grad_enabled()
    disabled, rarely, collects = logging.root.manager.disable, gc.get_threshold(), gc.isenabled()
    ends, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
    try:
        yield
    finally:
        torch._dynamo.config.recompile_limit = limit
        torch.compiler.set_stance("default")
        torch.set_grad_enabled(grad)
        logging.disable(disabled)
        gc.set_threshold(*rarely)
        gc.enable() if collects else gc.disable()
        signal.signal(signal.SIGTERM, ends)
        sys.excepthook = hook


def _first(deployment: Deployment, law: str) -> Violation | None:
    """The first violation that the law itself saw, or else that the engine raised."""
    raised = None
    for found in violations(deployment, law):
        if found.raised is None:
            return found
        raised = raised or found
    return raised


def _mark(found: Violation | None, *, own: bool) -> str:
    if found is None:
        return ""
    if found.raised is not None:
        return "e"
    return "**x**" if own else "x"


def page(rows: dict[type[Engine], dict[str, Violation | None]], seconds: float) -> str:
    """The matrix in Markdown."""
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in PACKAGES)
    numbers = [str(index) for index in range(1, len(LAWS) + 1)]
    alive = [engine.__name__ for engine, row in rows.items() if not _kills(row, engine)]
    lines = [
        "# Faulty engines by law",
        "",
        f"{len(rows)} faulty engines, each with one defect, on a micro model with an embedding, linear "
        "layers, a transformers Conv1D and a grouped convolution, judged by every law of "
        f"[the contract](contract.md). Made by `python -m tests.mutants.run --write` in {seconds:.0f} s "
        f"with {versions}, backend eager. **x**: killed by the law that the defect breaks; x: killed by "
        "another law too; e: the engine raised an error where the law expects it to work, which is not "
        "counted as a kill. "
        + (
            f"Alive: {', '.join(alive)}." if alive else "None is alive; the sound engine obeys all."
        ),
        "",
        *(f"{number}. {law}: {LAWS[law]}" for number, law in zip(numbers, LAWS, strict=True)),
        "",
        f"| faulty engine | {' | '.join(numbers)} |",
        "|---" * (len(LAWS) + 1) + "|",
    ]
    for engine, row in rows.items():
        marks = [_mark(row[law], own=law == engine.law) for law in LAWS]
        lines.append(f"| {engine.__name__}: {_said(engine)} | {' | '.join(marks)} |")
    return "\n".join([*lines, ""])


def _said(engine: type[Engine]) -> str:
    return (engine.__doc__ or "").strip().partition("\n")[0].rstrip(".").replace("|", "/")


def _kills(row: dict[str, Violation | None], engine: type[Engine]) -> bool:
    found = row[engine.law]
    return found is not None and found.raised is None


def judge(name: str, law: str) -> int:
    """Print how one engine breaks one law; 1 if it does not."""
    engine = next((engine for engine in ENGINES if engine.__name__ == name), None)
    if engine is None or law not in LAWS:
        raise SystemExit(f"there is no engine {name}" if engine is None else f"no law is {law}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), [engine.fleet])
        with bench.of(engine) as deployment:
            found = list(violations(deployment, law))
    print(*found or [f"{name} obeys {law}"], sep="\n")
    return int(not found)


def main(argv: list[str]) -> int:
    """Judge one engine, or print or write the full matrix; the number of engines that are alive."""
    if len(argv) == 2:
        return judge(*argv)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for fleet, deployment in bench.shared.items():
            for law in LAWS:
                for found in violations(deployment, law):
                    raise SystemExit(f"the sound engine on {fleet} breaks a law: {found}")
        rows = {}
        for engine in ENGINES:
            rows[engine] = bench.row(engine)
            print(engine.__name__, "" if _kills(rows[engine], engine) else "ALIVE", file=sys.stderr)
    text = page(rows, time.perf_counter() - start)
    if "--write" in argv:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
    return sum(not _kills(row, engine) for engine, row in rows.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
