"""Make the pictures of the report page in docs/images: verify three fleets, and photograph the pages.

Run as ``python benchmarks/report_pictures.py FOLDER``. What is verified is kept in FOLDER and not
verified again: the demo, the demo as PEFT's own functions serve it, and 300 adapters of which a few
cannot be served. Needs Chromium and the extras of development; takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from hotswap.report.document import read
from hotswap.report.html import html

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = {"width": 1280, "height": 860}
ADAPTERS, RANKS = 300, (4, 8, 8, 16)


def fleet(folder: Path) -> list[str]:
    """Write a model and many adapters, two of them damaged; give the words that verify them."""
    import torch

    from hotswap.bench.models import pretrained, write_adapter
    from hotswap.cli.verify.demo import write_demo

    base, _ = write_demo(folder)
    generator = torch.Generator().manual_seed(0)
    names = [f"customer-{number:03}" for number in range(ADAPTERS)]
    for number, name in enumerate(names):
        path, rank = folder / "customers" / name, RANKS[number % len(RANKS)]
        modules = ["q_proj", "v_proj", *(["down_proj"] if number % 3 else [])]
        config: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": modules}
        write_adapter(pretrained(base), path, generator, 0.1, task_type="CAUSAL_LM", **config)
    weights = folder / "customers" / names[41] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "customers" / names[207] / "adapter_config.json").write_text('{"r": 8}')
    quick = ["--backend", "eager", "--no-timing"]
    return [str(folder / "customers" / "*"), "--base", str(base), *quick]


def main() -> None:
    """Verify what is not verified yet, and write the pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    runs = {
        "ready": lambda: ["--demo"],
        "failing": lambda: ["--demo", "--subject", "pytest_hotswap:PeftSubject"],
        "fleet": lambda: fleet(folder / "files"),
    }
    for name, words in runs.items():
        if not (folder / name / "report.json").exists():
            command = [sys.executable, "-m", "hotswap", "verify", *words()]
            subprocess.run([*command, "--report", str(folder / name)], check=False)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, scheme in zip(runs, ("light", "dark", "light"), strict=True):
            page = folder / name / "report.html"
            page.write_text(html(read(folder / name)), encoding="utf-8")
            tab = browser.new_page(viewport=SIZE, color_scheme=scheme)
            tab.goto(page.resolve().as_uri())
            picture = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            small = picture.quantize(128, dither=Image.Dither.NONE)
            small.save(IMAGES / f"report-{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
