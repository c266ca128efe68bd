"""The project judges its own code, the workflow is the documented one, the linter is content."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import warm

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not in this copy")


def test_a_project_judges_its_own_code(fleet: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(EXAMPLES / "pytest_project", project)
    shutil.copytree(fleet, project / "fleet")
    words = ["-m", "pytest", "-q", "-k", "test_swapping and not machine", "-p", "no:cacheprovider"]
    done = warm.run([sys.executable, *words], cwd=project)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_workflow_is_the_one_of_the_documentation() -> None:
    workflow = (EXAMPLES / "github-workflow.yml").read_text()
    page = (EXAMPLES.parent / "docs/how-to/ci.md").read_text()
    assert f"```yaml\n{workflow}```" in page  # where it is run, step by step


def test_the_linter_finds_nothing_in_the_examples() -> None:
    command = [sys.executable, "-m", "hotswap", "lint", str(EXAMPLES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
