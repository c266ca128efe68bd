"""Check source code: read the files, run the programs in them, and turn problems into findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hotswap.findings import Finding, Related
from hotswap.lint.chunk import Chunk, Unread, lines_of
from hotswap.lint.files import concerns, find, parse
from hotswap.lint.program import analyse
from hotswap.lint.rules import RULES
from hotswap.lint.settings import Settings
from hotswap.lint.tree import Tree


def check_source(
    paths: str | Path | Iterable[str | Path],
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    settings: Settings | None = None,
) -> list[Finding]:
    """Return the misuses of adapter hot-swapping in files and folders, sorted by place.

    Reads Python, notebooks, and the Python in Markdown, reStructuredText and Quarto; nothing is imported
    or run. ``select`` and ``ignore`` take codes, prefixes of codes (``HSW29``) or names of rules; without
    ``select`` the rules that are on by default apply. What could not be analysed is a finding too, a
    warning (``HSW200``). Raises ``OSError`` for a path that cannot be read.
    """
    given = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    chosen = settings or Settings(select, (), ignore)
    files = list(find(given, chosen.exclude, chosen.root))
    tree = Tree(files)
    found: dict[tuple[object, ...], Finding] = {}
    commented: list[Chunk] = []
    for path in files:
        try:
            chunks, unread = read(path, tree)
        except OSError as error:
            if path in given:
                raise
            chunks, unread = [], [Unread(str(path), f"it cannot be read: {error.strerror}")]
        for each in _findings(chunks, unread, tree):
            home = Path(each.where.partition("::cell ")[0])
            if each.code in chosen.codes_in(home):
                found.setdefault((each.where, each.code, each.line, each.column), each)
        commented += chunks if "HSW293" in chosen.codes_in(path) else []
    for chunk in commented:  # what is found in a file may be found from another
        seen = tree.chunk(chunk.path) if tree.imported(chunk.path) else None
        found |= {(each,): each for each in _unused(chunk, seen)}
    return sorted(found.values())


def read(path: Path, tree: Tree) -> tuple[list[Chunk], list[Unread]]:
    """Parse the programs of a file that, with what it imports, mentions the APIs."""
    data = path.read_bytes()
    wanted = concerns(data) or (path.suffix == ".py" and tree.concerns(path, data))
    return parse(data, path) if wanted else ([], [])


def check_text(
    text: str,
    *,
    path: str | Path = "<string>",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    settings: Settings | None = None,
) -> list[Finding]:
    """Return the misuses in a text, which is read as the path's suffix says (Python if it has none)."""
    data = text.encode("utf-8", "surrogatepass")
    return check_bytes(data, Path(path), settings=settings or Settings(select, (), ignore))


def check_bytes(data: bytes, path: Path, *, settings: Settings) -> list[Finding]:
    """Return the misuses in what is, or would be, the content of a file."""
    chunks, unread = parse(data, path) if concerns(data) else ([], [])
    codes = settings.codes_in(path)
    found = {each for each in _findings(chunks, unread) if each.code in codes}
    for chunk in chunks if "HSW293" in codes else ():
        found.update(_unused(chunk))
    return sorted(found)


def _findings(
    chunks: Iterable[Chunk], unread: Iterable[Unread], tree: Tree | None = None
) -> Iterator[Finding]:
    for chunk in chunks:
        yield from findings_in(chunk, tree)
    for lost in unread:
        told = f"{lost.reason}, so that nothing in it is checked", "mend it, or leave it out"
        place = lost.line, lost.column, lost.line, lost.column + 1
        yield Finding(lost.where, "HSW200", *told, *place, lost.snippet)


def findings_in(chunk: Chunk, tree: Tree | None = None) -> list[Finding]:
    """Analyse one program, with the modules of the tree that it imports; return what any rule says."""
    problems, places = analyse(chunk, tree)
    found = []
    for (code, node), problem in problems.items():
        home = places.get(node, chunk)
        if not home.noqa.suppresses(code, set(lines_of(node))):
            spans = [
                (places.get(other, chunk).span(other), told) for other, told in problem.related
            ]
            related = tuple(Related(*span[:3], told) for span, told in spans)
            where, line, column, last, end = home.span(node)
            text = home.line_of(node)
            told = where, code, problem.message, problem.remedy
            found.append(Finding(*told, line, column, last, end, text, related))
    return found


def _unused(chunk: Chunk, imported: Chunk | None = None) -> Iterator[Finding]:
    """Yield the comments that suppress rules and have suppressed nothing, also where it is imported."""
    left = {*chunk.noqa.unused(RULES.keys() - {"HSW293"})}
    if imported is not None:
        left &= {*imported.noqa.unused(RULES.keys() - {"HSW293"})}
    for number, prefix in left:
        if chunk.noqa.suppresses("HSW293", [number]):
            continue
        where, line = chunk.locate(number)
        text = chunk.lines[number - 1]
        start = text.rfind("#") + 1
        told = f"the comment suppresses {prefix}, which is not found here", "take it out"
        yield Finding(where, "HSW293", *told, line, start, line, len(text) + 1, text)
