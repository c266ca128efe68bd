"""Patterns of ``match``, as conditions and as the names that they bind."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def matches(subject: ast.expr, pattern: ast.pattern) -> ast.expr | None:
    """Return the condition under which the pattern matches; None if it always does."""
    if isinstance(pattern, ast.MatchValue):
        return ast.Compare(subject, [ast.Eq()], [pattern.value])
    if isinstance(pattern, ast.MatchSingleton):
        return ast.Compare(subject, [ast.Is()], [ast.Constant(pattern.value)])
    if isinstance(pattern, ast.MatchAs):
        return None if pattern.pattern is None else matches(subject, pattern.pattern)
    if isinstance(pattern, ast.MatchOr):
        tests = [matches(subject, each) for each in pattern.patterns]
        known = [test for test in tests if test is not None]
        return ast.BoolOp(ast.Or(), known) if len(known) == len(tests) else None
    if isinstance(pattern, ast.MatchClass) and not (pattern.patterns or pattern.kwd_patterns):
        return ast.Call(ast.Name("isinstance", ast.Load()), [subject, pattern.cls], [])
    return ast.Call(ast.Name("unknown pattern", ast.Load()), [], [])


def captured(pattern: ast.pattern) -> Iterator[str]:
    """Yield the names that the pattern binds."""
    for part in ast.walk(pattern):
        name = getattr(part, "name", None) or getattr(part, "rest", None)
        if isinstance(name, str):
            yield name
