"""Files and source code are judged without torch, and what needs it says so in one sentence.

Here torch is hidden from an environment that has it; the built wheel is tried in one that has not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "support" / "without_torch.py"
HIDE = """
import sys
for name in ("torch", "peft", "transformers", "diffusers", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
"""


def run(folder: Path, hide: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(hide)
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([str(folder), root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False
    )


def test_files_and_code_are_judged_without_torch(tmp_path: Path) -> None:
    done = run(tmp_path, HIDE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_that_is_there_is_seen(tmp_path: Path) -> None:
    done = run(tmp_path, "")
    assert (done.returncode, done.stdout) == (1, "torch is installed here\n")
