"""Many adapters judged together: each inspected, in processes; then names, base models and twins."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from pathlib import Path

from hotswap.adapters.files import open_weights
from hotswap.adapters.fit import BaseModel
from hotswap.adapters.header import FileLayout
from hotswap.adapters.inspect import Inspection, Inspector
from hotswap.adapters.plan import SwapPlan
from hotswap.adapters.texts import open_texts, weights_of
from hotswap.adapters.weights import content_digest, sampled_digest
from hotswap.errors import HotswapError, UnreadableAdapterError
from hotswap.findings import Finding

LONGEST_NAME = 128
"""Characters of a name that are compared with other names."""
_CHUNK = 64  # adapters that a process is given at a time
_MOST_JOBS = 61  # Windows waits for no more
_inspector: Inspector | None = None  # of a worker process


def judge(
    paths: Sequence[str],
    codes: Collection[str],
    *,
    plan: SwapPlan | None = None,
    base: BaseModel | None = None,
    weights: bool = False,
    allow_pickle: bool = False,
    jobs: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Inspection], list[Finding]]:
    """Inspect adapters in their order, in ``jobs`` processes, and return the findings of some codes.

    ``progress`` hears how many are done. Raises HotswapError when a process ends before its work.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    fleet = []
    for one in _inspections(paths, Inspector(plan, base, weights, allow_pickle), jobs):
        fleet.append(one)
        progress(len(fleet))
    findings = {finding for one in fleet for finding in one.findings}
    if plan is None and len({one.ground for one in fleet if one.ground}) > 1:
        findings.update(finding for one in fleet for finding in one.of_ground)
    findings.update(_name_findings(fleet), _base_findings(fleet, base.name if base else ""))
    if "HSW116" in codes:  # for which weights are read
        findings.update(_twin_findings(fleet))
    return fleet, sorted(finding for finding in findings if finding.code in codes)


def _inspections(paths: Sequence[str], inspector: Inspector, jobs: int) -> Iterator[Inspection]:
    if jobs == 1 or len(paths) <= _CHUNK:
        yield from map(inspector, paths)
        return
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    context = get_context("spawn" if os.name == "nt" else "forkserver")
    pool = ProcessPoolExecutor(min(jobs, _MOST_JOBS), context, _start_worker, (inspector,))
    try:
        yield from pool.map(_inspect, paths, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise HotswapError(
            "a process that checks adapters ended before its work, was it killed or out of memory? "
            'a script that asks for jobs must do so below if __name__ == "__main__"'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(inspector: Inspector) -> None:
    global _inspector
    _inspector = inspector


def _inspect(path: str) -> Inspection:
    if _inspector is None:
        raise RuntimeError("the worker process was not started")
    return _inspector(path)


def _name_findings(fleet: Sequence[Inspection]) -> Iterator[Finding]:
    """Names that PEFT's functions, which look for one in another, confuse; one finding of each kind."""
    paths: dict[str, list[str]] = defaultdict(list)
    for one in fleet:
        paths[one.name].append(one.path)
    twice = [found for found in paths.values() if len(set(found)) > 1]
    inside = [(name, longer) for longer in paths for name in _inner(longer, paths)]
    parts = [name for name in paths if "lora" in name.lower()] if len(paths) > 1 else []
    remedy = "rename them, or swap with hotswap.swap, which compares whole names"
    if twice:
        text = f"{twice[0][0]} has the same name{_more(len(twice), 'name')}"
        yield Finding(twice[0][1], "HSW114", text, "rename one of the folders")
    if inside:
        name, longer = inside[0]
        text = f"the name {name!r} is part of {longer!r}{_more(len(inside), 'pair')}"
        yield Finding(paths[name][0], "HSW114", text, remedy)
    if parts:
        text = f"the name {parts[0]!r} has 'lora' in it, as the tensors have{_more(len(parts), 'name')}"
        yield Finding(paths[parts[0]][0], "HSW114", text, remedy)


def _inner(longer: str, names: Container[str]) -> list[str]:
    """The names that are a part of a longer one, in time that does not grow with their number."""
    text = longer[:LONGEST_NAME]
    pieces = {text[a:b] for a in range(len(text)) for b in range(a + 1, len(text) + 1)}
    return sorted(piece for piece in pieces if piece in names and piece != longer)


def _base_findings(fleet: Sequence[Inspection], base: str) -> Iterator[Finding]:
    """Adapters that name another base model than the others, or than the one that is given."""
    counted = Counter(one.base for one in fleet if one.base)
    usual = base or max(counted, key=counted.__getitem__, default="")
    whose = "is given" if base else "most others have"
    first = {one.base: one.path for one in reversed(fleet)}
    for name, count in counted.items():
        if _end(name) != _end(usual):
            text = f"base_model_name_or_path is {ascii(name)[:80]}, {ascii(usual)[:80]} {whose}"
            remedy = "check that the weights of the two models are the same"
            yield Finding(first[name], "HSW113", f"{text}{_more(count, 'adapter')}", remedy)


def _end(name: str) -> str:
    """What counts of the name of a base model: of a path, its last part."""
    return name.rstrip("/").rpartition("/")[2]


def _twin_findings(fleet: Sequence[Inspection]) -> Iterator[Finding]:
    """Adapters of equal bytes; data are read only where the texts and the sizes are equal."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for one in fleet:
        if one.mark:
            groups[one.mark].append(one.path)
    for paths in groups.values():
        files: dict[str, str] = {}
        for path in paths if len(paths) > 1 else ():
            files.setdefault(os.path.realpath(path), path)
        first: dict[str, str] = {}
        for path in _alike([*files.values()]):
            digest = _digest(path)
            if digest is not None and first.setdefault(digest, path) != path:
                text = f"has the same config and bytes as {first[digest]} (digest {digest})"
                yield Finding(path, "HSW116", text, "keep one, and key caches on the digest")


def _alike(paths: Sequence[str]) -> list[str]:
    """Those adapters of which another one has equal samples: only they may be copies."""
    if len(paths) < 2:
        return []
    samples = {path: _sample(path) for path in paths}
    counts = Counter(samples.values())
    return [path for path in paths if samples[path] is not None and counts[samples[path]] > 1]


def _digest(path: str) -> str | None:
    """The content digest of an adapter's weights on the disk; None if it is not to be read any more."""
    try:
        with open_texts(path) as texts:
            return content_digest(texts.file, texts.layout()) if texts.file is not None else None
    except (UnreadableAdapterError, OSError):
        return None


def _sample(path: str) -> str | None:
    """The digest of some blocks of it, without a look at the header."""
    try:
        with open_weights(weights_of(Path(path)) or path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            return sampled_digest(file, FileLayout({}, 8 + length, size - 8 - length))
    except (UnreadableAdapterError, OSError):
        return None


def _more(count: int, what: str) -> str:
    return f" (and {count - 1} more {what}{'s' if count > 2 else ''})" if count > 1 else ""
