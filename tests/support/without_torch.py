"""What works without torch and what says that it does not, in an environment of its own.

Run by this path with any Python that has pytest-hotswap and no torch; it prints what is wrong and exits
with 1, or prints "ok". Nothing else of tests/ is needed.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

EXTRA = "which is not installed; run: pip install 'pytest-hotswap[torch]'"
CODE = """
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter

model = torch.compile(PeftModel.from_pretrained(base, "a"))
hotswap_adapter(model, "b", adapter_name="default")
"""
TEST = """
import pytest_hotswap

class TestIt(pytest_hotswap.HotswapContract):
    pass
"""


def write(folder: Path, shapes: dict[str, tuple[int, int]], **config: object) -> None:
    """Write a safetensors file of zeros and, if it has one, its config."""
    at, entries = 0, {}
    for name, shape in shapes.items():
        end = at + 4 * shape[0] * shape[1]
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries).encode()
    folder.mkdir()
    data = struct.pack("<Q", len(header)) + header + bytes(at)
    (folder / "adapter_model.safetensors").write_bytes(data)
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> int:
    """Try every command; give the exit code."""
    wrong: list[str] = []

    def expect(code: int, told: str, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False
        )
        shown = done.stdout + done.stderr
        if done.returncode != code or told not in shown or "Traceback (most" in shown:
            wrong.append(f"{' '.join(words)}: exit code {done.returncode}, not {code}:\n{shown}")

    if find_spec("torch"):
        print("torch is installed here")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = {f"base_model.model.q.lora_{side}.weight": (4, 4) for side in "AB"}
        lora = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}
        write(folder / "good", own, **lora)
        write(folder / "bad", own, **{**lora, "r": 2})
        kohya = {f"lora_unet_down_blocks_0_q.lora_{end}.weight": (4, 4) for end in ("down", "up")}
        write(folder / "kohya", kohya)
        (folder / "src").mkdir()
        (folder / "src" / "serve.py").write_text(CODE)
        (folder / "test_it.py").write_text(TEST)
        good, bad, code, test = (str(folder / n) for n in ("good", "bad", "src", "test_it.py"))
        weights = folder / "kohya" / "adapter_model.safetensors"
        other = str(weights.rename(folder / "kohya" / "style.safetensors"))
        expect(0, "1 adapter, no errors", "hotswap", "check", good, "--weights")
        expect(1, "HSW104", "hotswap", "check", bad, "-j", "2")
        expect(0, "Target rank: 4", "hotswap", "plan", good)
        expect(1, "HSW205", "hotswap", "lint", code)
        expect(0, "HSW205", "hotswap", "explain", "HSW205")
        expect(2, EXTRA, "hotswap", "check", good, "--base", "nowhere/base")
        expect(2, EXTRA, "hotswap", "check", other, "-j", "2")
        expect(2, EXTRA, "hotswap", "verify", good, "--base", name)
        expect(2, EXTRA, "hotswap", "bench")
        expect(2, f"pytest_hotswap.HotswapContract needs torch, {EXTRA}", "pytest", test)
        expect(1, "HSW205", "pytest", "--hotswap-lint", code)
        script = "import hotswap\ntry:\n    hotswap.swap\nexcept ImportError as e:\n    print(e)\n"
        (folder / "swap.py").write_text(script)
        done = subprocess.run(
            [sys.executable, str(folder / "swap.py")], capture_output=True, text=True, check=False
        )
        if f"hotswap.swap needs torch, {EXTRA}" not in done.stdout:
            wrong.append(f"hotswap.swap: {done.stdout}{done.stderr}")
    print("\n".join(wrong) or "without torch: ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
