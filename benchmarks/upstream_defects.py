"""Run the contract on PEFT and transformers as they are installed, and write docs/upstream-defects.md.

    python benchmarks/upstream_defects.py            compare with the page; exit 1 if it is not true any more
    python benchmarks/upstream_defects.py --write    write the page

A law that is broken and was not, or was broken and is not any more, is a difference.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from hotswap.cli.demo import write_demo
from hotswap.report.laws import LAWS
from pytest_hotswap import PeftSubject, ReferenceSubject, Subject, TransformersSubject
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations

PAGE = Path(__file__).parent.parent / "docs" / "upstream-defects.md"
SUBJECTS: dict[str, type[Subject]] = {
    "hotswap": ReferenceSubject,
    "PEFT": PeftSubject,
    "transformers": TransformersSubject,
}
PACKAGES = ("peft", "transformers", "torch")
LONGEST = 150


def findings(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (subject, law, first sentence) for every law that is broken."""
    base, adapters = write_demo(folder)
    for name, cls in SUBJECTS.items():
        subject = cls(base=str(base), adapters=[str(path) for path in adapters])
        torch._dynamo.reset()
        deployment = Deployment(subject, folder / name)
        _ = deployment.unprepared_recompiles  # while torch remembers no number that has changed
        for law in LAWS:
            found = list(violations(deployment, law))
            if found:
                more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
                yield name, law, _sentence(found[0], law) + more


def _sentence(text: str, law: str) -> str:
    first = " ".join(text.removeprefix(f"{law}: ").split()).partition("; ")[0].replace("|", "/")
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}…"


def page(rows: list[tuple[str, str, str]]) -> str:
    """The page in Markdown."""
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in PACKAGES)
    lines = [
        "# What the contract finds upstream",
        "",
        f"The contract on a 2-layer Llama and four adapters that differ in rank, alpha, rank pattern and "
        f"target modules, backend eager, with {versions}. Every law that is broken is in the table; the "
        "engine of hotswap goes through the same run. Made by `python benchmarks/upstream_defects.py "
        "--write`; without `--write` the script fails when a defect disappears or a new one shows.",
        "",
        "| deployment | law | first violation |",
        "|---|---|---|",
        *(f"| {name} | {law} | {text} |" for name, law, text in rows),
        "",
    ]
    if not any(name == "hotswap" for name, _, _ in rows):
        lines += ["hotswap's own engine breaks none.", ""]
    return "\n".join(lines)


def keys(text: str) -> set[tuple[str, str]]:
    """The (subject, law) pairs of a page's table."""
    return {(a, b) for a, b in re.findall(r"^\| ([\w]+) \| ([\w-]+) \|", text, re.MULTILINE)} - {
        ("deployment", "law")
    }


def main(argv: list[str]) -> int:
    """Compare with the page or write it; 0 when they agree."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        rows = list(findings(Path(folder)))
    text = page(rows)
    if "--write" in argv:
        PAGE.write_text(text, encoding="utf-8")
        print(f"{len(rows)} broken laws written to {PAGE}")
        return 0
    before, now = keys(PAGE.read_text(encoding="utf-8")), keys(text)
    for name, law in sorted(before - now):
        print(f"{name}: {law} is not broken any more; look at it and run with --write")
    for name, law in sorted(now - before):
        print(f"{name}: {law} is broken and was not; look at it and run with --write")
    return int(before != now)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
