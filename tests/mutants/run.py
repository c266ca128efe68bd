"""Judge faulty engines: each by its own law, or all by every law."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hotswap.report.laws import LAWS
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from tests.mutants.engines import ENGINES
from tests.mutants.subject import FLEETS, Engine, write_fleets


class Bench:
    """The unmutated deployments, one a fleet, that faulty engines with a sound model share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_fleets(folder)
        self.shared: dict[str, Deployment] = {}
        for fleet in FLEETS:
            engine = type("Sound", (Engine,), {"fleet": fleet})
            self.shared[fleet] = Deployment(engine(folder), folder / f"sound-{fleet}")
            torch._dynamo.reset()  # it remembers numbers that have changed
            _ = self.shared[fleet].unprepared_recompiles
        for deployment in self.shared.values():
            _ = deployment.snapshot

    @contextmanager
    def of(self, engine: type[Engine]) -> Iterator[Deployment]:
        """A deployment of the faulty engine."""
        subject = engine(self.folder)
        if engine.own:
            limit = torch._dynamo.config.recompile_limit
            try:
                yield Deployment(subject, self.folder / f"own-{engine.__name__}")
            finally:
                torch._dynamo.config.recompile_limit = limit
            return
        deployment = self.shared[engine.fleet]
        sound, deployment.subject = deployment.subject, subject
        try:
            yield deployment
        finally:
            deployment.subject = sound
            deployment.snapshot.restore()

    def killed_by(self, engine: type[Engine], law: str) -> str | None:
        """The first violation of a law by an engine, if there is one."""
        with self.of(engine) as deployment:
            return next(violations(deployment, law), None)


def main(argv: list[str]) -> int:
    """Print the full matrix as Markdown; ``argv`` is a scratch folder."""
    bench = Bench(Path(argv[0]))
    start = time.perf_counter()
    short = {law: str(index) for index, law in enumerate(LAWS, start=1)}
    print("| faulty engine | " + " | ".join(short.values()) + " |")
    print("|---|" + "---|" * len(LAWS))
    alive = []
    for engine in ENGINES:
        row = {law: bench.killed_by(engine, law) is not None for law in LAWS}
        marks = [
            "**x**" if row[law] and law == engine.law else "x" if row[law] else "" for law in LAWS
        ]
        print(f"| {engine.__name__} | " + " | ".join(marks) + " |", flush=True)
        alive += [] if row[engine.law] else [engine.__name__]
    seconds = time.perf_counter() - start
    print(
        f"\n{len(ENGINES)} faulty engines, {len(alive)} alive {alive}; {seconds:.0f} s",
        file=sys.stderr,
    )
    return len(alive)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
