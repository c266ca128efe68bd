"""check_adapters: a fleet judged from its files alone, and against a plan and a base model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hotswap.adapters.fleet import judge
from hotswap.adapters.plan import SwapPlan
from hotswap.findings import Finding, chosen


def check_adapters(
    adapters: str | Path | Iterable[str | Path],
    *,
    plan: SwapPlan | str | Path | None = None,
    base: str | Path | None = None,
    weights: bool = False,
    allow_pickle: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    jobs: int = 1,
) -> list[Finding]:
    """Return what is wrong with adapters, from their files alone; without errors a swap accepts them.

    ``adapters`` are folders, ``.safetensors`` files and hub ids. ``plan`` says what a model has room for,
    ``base`` is the folder, config file or id of a base model, built without weights. Only ``weights``
    reads the values; ``allow_pickle`` lets files of torch.save be read, by torch.load(weights_only=True).
    ``select`` and ``ignore`` take codes, prefixes of codes or names. Raises ValueError
    for a code that does not exist, HotswapError for a plan or base model that cannot be read.
    """
    codes = chosen(select, ignore)
    given = [adapters] if isinstance(adapters, str | Path) else adapters
    paths = [str(path) for path in given]
    room = plan if plan is None or isinstance(plan, SwapPlan) else SwapPlan.read(plan)
    model = None
    if base is not None:
        from hotswap.checks.base_model import read_base

        model = read_base(base)
    return judge(
        paths, codes, plan=room, base=model, weights=weights, allow_pickle=allow_pickle, jobs=jobs
    )[1]
