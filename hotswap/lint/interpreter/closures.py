"""Closures: functions that are returned take the names around them along, and change them from there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hotswap.lint.interpreter import values as v
from hotswap.lint.interpreter.state import Frame, State, Table


def closed(end: State, result: v.Value | None, depth: int, call: Any) -> v.Value | None:
    """Return the result of a call with frames from ``depth`` on; its functions keep the names around them."""
    if isinstance(result, v.Seq):
        items = tuple(closed(end, each, depth, call) for each in result.items)
        return v.Seq(tuple(each for each in items if each is not None))
    if isinstance(result, v.Partial):
        func = closed(end, result.func, depth, call)
        return result if func is None else replace(result, func=func)
    if not _inner(result, depth, end) or not isinstance(result, v.Func):
        return result
    names: dict[str, v.Value] = {}
    at = result.frame
    while at >= depth:
        names = {**end.frames[at].names, **names}
        at = end.frames[at].parent
    cell = (call, tuple(names))
    for name, value in names.items():
        if _inner(value, depth, end) and isinstance(value, v.Func):
            value = replace(value, frame=at, cell=cell)
        end.put(("cell", call, name), value)
    return replace(result, frame=at, cell=cell)


def _inner(value: v.Value | None, depth: int, end: State) -> bool:
    """Tell whether a value is a function that is defined in the call."""
    return (
        isinstance(value, v.Func) and value.cell is None and depth <= value.frame < len(end.frames)
    )


def enclose(state: State, cell: v.Cell, parent: int, home: int) -> int:
    """Return the frame with the names around a function, put on top of the others if it is not among them."""
    call, names = cell
    for index, frame in enumerate(state.frames):
        if frame.cell == call:
            return index
    found = ((name, state.heap.get(("cell", call, name))) for name in names)
    kept = Table({name: value for name, value in found if value is not None})
    state.frames.append(Frame(parent, kept, home=home, cell=call))
    return len(state.frames) - 1


def keep(state: State, depth: int) -> None:
    """Keep the names around functions, as they are when the frames from ``depth`` on are left."""
    for frame in state.frames[depth:]:
        for name, value in frame.names.items() if frame.cell is not None else ():
            if value is not state.heap.get(("cell", frame.cell, name)):
                state.put(("cell", frame.cell, name), value)
