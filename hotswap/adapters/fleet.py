"""Many adapters judged together: each inspected, in processes; then names, base models and twins."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from hotswap.adapters.fit import BaseModel
from hotswap.adapters.inspect import Inspection, Inspector
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.reader import SpecReader
from hotswap.adapters.weights import content_digest
from hotswap.errors import HotswapError, UnreadableAdapterError
from hotswap.findings import RULES, Finding

LONGEST_NAME = 128
"""Characters of a name that are compared with other names."""
_CHUNK = 64  # adapters that a process is given at a time
_MOST_JOBS = 61  # Windows waits for no more
_inspector: Inspector | None = None  # of a worker process


def chosen(select: Sequence[str], ignore: Sequence[str]) -> frozenset[str]:
    """Return the codes that apply; raises ValueError for one that does not exist."""
    wanted = {code for word in select for code in _matching(word)} if select else set(RULES)
    return frozenset(wanted - {code for word in ignore for code in _matching(word)})


def inspections(
    paths: Sequence[str],
    *,
    plan: SwapPlan | None = None,
    base: BaseModel | None = None,
    weights: bool = False,
    jobs: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Inspection]:
    """Inspect adapters in their order, in ``jobs`` processes; ``progress`` hears how many are done.

    Raises HotswapError when a process ends before its work.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    if jobs == 1 or len(paths) <= _CHUNK:
        inspector = Inspector(plan, base, weights=weights)
        for done, path in enumerate(paths, 1):
            yield inspector(path)
            progress(done)
        return
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    context = get_context("spawn" if os.name == "nt" else "forkserver")
    pool = ProcessPoolExecutor(min(jobs, _MOST_JOBS), context, _start_worker, (plan, base, weights))
    try:
        for done, found in enumerate(pool.map(_inspect, paths, chunksize=_CHUNK), 1):
            yield found
            progress(done)
    except BrokenProcessPool as error:
        raise HotswapError(
            "a process that checks adapters ended before its work, was it killed or out of memory? "
            'a script that asks for jobs must do so below if __name__ == "__main__"'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def fleet_findings(
    fleet: Sequence[Inspection], *, base: str = "", copies: bool = True
) -> Iterator[Finding]:
    """What is remarkable about adapters together: names that collide, other base models, copies."""
    yield from _name_findings(fleet)
    yield from _base_findings(fleet, base)
    if copies:
        yield from _twin_findings(fleet)


def _start_worker(plan: SwapPlan | None, base: BaseModel | None, weights: bool) -> None:
    global _inspector
    _inspector = Inspector(plan, base, weights=weights)


def _inspect(path: str) -> Inspection:
    if _inspector is None:
        raise RuntimeError("the worker process was not started")
    return _inspector(path)


def _matching(word: str) -> list[str]:
    found = [code for code, name in RULES.items() if name == word or code.startswith(word.upper())]
    if not found or not word:
        raise ValueError(f"no rule matches {word!r}; `hotswap explain` lists the codes and names")
    return found


def _name_findings(fleet: Sequence[Inspection]) -> Iterator[Finding]:
    """Names that PEFT's functions, which look for one in another, confuse; one finding of each kind."""
    paths: dict[str, list[str]] = defaultdict(list)
    for one in fleet:
        paths[one.name].append(one.path)
    remedy = "rename them, or swap with hotswap.swap, which compares whole names"
    twice = {name: found for name, found in paths.items() if len(set(found)) > 1}
    if twice:
        name, found = next(iter(twice.items()))
        text = f"{found[0]} has the same name{_more(len(twice), 'name')}"
        yield Finding(found[1], "HSW114", text, "rename one of the folders")
    inside = [(name, longer) for longer in paths for name in _inner(longer, paths)]
    if inside:
        name, longer = inside[0]
        text = f"the name {name!r} is part of {longer!r}{_more(len(inside), 'pair')}"
        yield Finding(paths[name][0], "HSW114", text, remedy)
    parts = [name for name in paths if "lora" in name.lower()]
    if parts and len(paths) > 1:
        text = f"the name {parts[0]!r} has 'lora' in it, as the tensors have{_more(len(parts), 'name')}"
        yield Finding(paths[parts[0]][0], "HSW114", text, remedy)


def _inner(longer: str, names: dict[str, list[str]]) -> Iterator[str]:
    """The names that are a part of a longer one, in time that does not grow with their number."""
    text = longer[:LONGEST_NAME]
    pieces = {text[a:b] for a in range(len(text)) for b in range(a + 1, len(text) + 1)}
    yield from sorted(piece for piece in pieces if piece in names and piece != longer)


def _base_findings(fleet: Sequence[Inspection], base: str) -> Iterator[Finding]:
    """Adapters that name another base model than the others, or than the one that is given."""
    counted = Counter(one.base for one in fleet if one.base)
    usual = base or next(iter(counted.most_common(1)), ("", 0))[0]
    said = set()
    for one in fleet:
        if one.base and _other(one.base, usual) and one.base not in said:
            said.add(one.base)
            whose = "is given" if base else "most others have"
            text = (
                f"base_model_name_or_path is {ascii(one.base)[:80]}, {ascii(usual)[:80]} {whose}"
                f"{_more(counted[one.base], 'adapter')}"
            )
            remedy = "check that the weights of the two models are the same"
            yield Finding(one.path, "HSW113", text, remedy)


def _other(name: str, usual: str) -> bool:
    """Whether two names differ; of a path only its last part counts."""
    return name.rstrip("/").rpartition("/")[2] != usual.rstrip("/").rpartition("/")[2]


def _twin_findings(fleet: Sequence[Inspection]) -> Iterator[Finding]:
    """Adapters of equal bytes; data are read only where the texts and the sizes are equal."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for one in fleet:
        if one.mark:
            groups[one.mark].append(one.path)
    for paths in groups.values():
        if len(paths) < 2:
            continue
        first: dict[str, str] = {}
        files: set[str] = set()
        for path in paths:
            real = os.path.realpath(path)
            digest = None if real in files else digest_of(path)
            files.add(real)
            if digest is not None and first.setdefault(digest, path) != path:
                text = f"has the same config and bytes as {first[digest]} (digest {digest})"
                yield Finding(path, "HSW116", text, "keep one, and key caches on the digest")


def digest_of(path: str) -> str | None:
    """The content digest of an adapter's weights on the disk; None if it is not to be read any more."""
    try:
        with SpecReader().open(path) as opened:
            return content_digest(opened.file, opened.layout) if opened.file is not None else None
    except (UnreadableAdapterError, OSError):
        return None


def _more(count: int, what: str) -> str:
    return f" (and {count - 1} more {what}{'s' if count > 2 else ''})" if count > 1 else ""
