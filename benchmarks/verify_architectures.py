"""Run ``hotswap verify`` on small models of twelve architectures, whole and with one damaged adapter.

Run as ``python benchmarks/verify_architectures.py [NAME]...``; ``--write`` puts the table into
docs/verify.md. Each cell is the verdict and the exit code of a command that a user would type.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "verify.md"


def verify(base: Path, adapters: list[Path], plan: Path | None) -> tuple[str, int, str]:
    """Run the command; give its last line, exit code and what it printed."""
    command = [sys.executable, "-m", "hotswap", "verify", *map(str, adapters), "--base", str(base)]
    command += ["--backend", "eager", "--no-timing", *(["--plan", str(plan)] if plan else [])]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[-1] if lines else "", done.returncode, done.stdout + done.stderr


def main() -> None:
    """Run the wanted architectures and print, or write, the table."""
    sys.path.insert(0, str(ROOT))
    from tests.support.architectures import ARCHITECTURES, DAMAGES, PIPELINE, damage, write_fleet

    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--damage", action="append", choices=DAMAGES)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    rows = []
    for name in given.names or (*ARCHITECTURES, PIPELINE):
        cells = []
        for how in given.damage or DAMAGES:
            with tempfile.TemporaryDirectory() as folder:
                base, adapters = write_fleet(name, Path(folder))
                plan = Path(folder, "plan.json") if how == "one rank too large" else None
                if plan is not None:
                    words = [sys.executable, "-m", "hotswap", "plan", *map(str, adapters)]
                    subprocess.run([*words, "-o", str(plan)], check=True, capture_output=True)
                if how != "none":
                    damage(adapters[1], how)
                begun = time.monotonic()
                line, code, shown = verify(base, adapters, plan)
            told = "not ready" if line.startswith("not ready") else line.partition(":")[0]
            refused = re.search(r"refused, b \((HSW\d+)\)", line)
            others = "the others ready" if "others: ready" in line else ""
            cells.append(
                ", ".join(filter(None, [told, refused[1] if refused else "", others, str(code)]))
            )
            print(f"{name}, {how}: {code} in {time.monotonic() - begun:.0f} s: {line}", flush=True)
            if given.show:
                print(shown)
        rows.append([name, *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if given.write:
        text = PAGE.read_text(encoding="utf-8")
        begin, end = "<!-- architectures -->\n", "<!-- end -->"
        before, after = text.partition(begin)[0], text.partition(end)[2]
        head = f"| architecture | {' | '.join(DAMAGES)} |\n|{'---|' * (len(DAMAGES) + 1)}\n"
        PAGE.write_text(f"{before}{begin}{head}{table}\n{end}{after}", encoding="utf-8")
    else:
        print(table)


if __name__ == "__main__":
    main()
