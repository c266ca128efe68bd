"""``hotswap verify --tiny``: a child process writes a small copy of the base model and of the adapters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hotswap.adapters.plan import SwapPlan
from hotswap.cli.fleet import Fleet
from hotswap.cli.verify import child
from hotswap.errors import HotswapError

_BASE, _PLAN, _TOLD = "base", "plan.json", "told.txt"


def write_small(
    base: str, fleet: Fleet, adapters: Sequence[str], folder: Path
) -> tuple[str, list[str], Fleet, str]:
    """Give the folders of the small base model and adapters, their plan, and what was cut, in words.

    Raises HotswapError for what is not cut, KeyboardInterrupt.
    """
    folder.mkdir()
    if fleet.plan is not None:
        fleet.plan.save(folder / _PLAN)
    words = [sys.executable, "-m", __name__, str(folder), base, *adapters, "--", *fleet.accepted]
    ended = child.run(words, folder / "tiny.txt", lambda: "cutting the model and its adapters")
    if ended.interrupted:
        raise KeyboardInterrupt
    if ended.code:
        raise HotswapError(ended.last_line.removeprefix("hotswap.errors.HotswapError: "))
    small = [str(folder / Path(path).resolve().name) for path in adapters]
    told = (folder / _TOLD).read_text(encoding="utf-8")
    return str(folder / _BASE), small, Fleet(SwapPlan.read(folder / _PLAN)), told


def write(folder: Path, base: str, adapters: Sequence[str], fleet: Sequence[str]) -> None:
    """Write them; the plan in the folder is cut in place. The layers that stay are the same in all shards."""
    from hotswap.adapters.pipeline_folder import read_pipeline_folder
    from hotswap.adapters.spec import AdapterSpec
    from hotswap.checks.base_model import describe, read_base
    from hotswap.checks.recut import recut, recut_plan
    from hotswap.checks.tiny import first_layer, write_tiny
    from hotswap.checks.tiny_pipeline import write_tiny_pipeline

    first = {path: first_layer(AdapterSpec.read(path).modules) for path in fleet}
    if read_pipeline_folder(base):
        told = write_tiny_pipeline(base, folder / _BASE, first)
        small = read_base(folder / _BASE)
    else:
        model, told = write_tiny(base, folder / _BASE, first)
        small = describe(model, base)
    for path in adapters:
        recut(path, small, folder / Path(path).resolve().name)
    recut_plan(SwapPlan.read(folder / _PLAN), small).save(folder / _PLAN)
    (folder / _TOLD).write_text(f"verified on a small copy of {told}", encoding="utf-8")


if __name__ == "__main__":
    _, place, model, *paths = sys.argv
    at = paths.index("--")
    write(Path(place), model, paths[:at], paths[at + 1 :])
