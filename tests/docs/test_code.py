"""Every Python block of the documentation runs, and the examples for CI do what they say.

All pages run in one process and one folder; what they compile is compiled with the backend eager.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.bench.timing import default_backend
from hotswap.report.document import derive, dumps
from tests.support import warm
from tests.support.packages import quickly
from tests.support.reports import gathered

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
SET_UP = {
    "compile-watch.md": """
import hotswap, torch
from transformers import AutoModelForCausalLM
plan = hotswap.plan(["adapters/a", "adapters/b", "adapters/c"])
base = AutoModelForCausalLM.from_pretrained("base").eval()
model = compiled = torch.compile(hotswap.load(base, plan, "adapters/a"))
inputs = {"input_ids": torch.arange(8).reshape(1, 8), "use_cache": False}
model(**inputs)
""",
    "sharded.md": """
import os
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
""",
}
"""What a page takes for granted beside the project."""
pytestmark = [
    pytest.mark.skipif(not PAGES, reason="the documentation is not in this copy"),
    pytest.mark.filterwarnings("ignore"),
]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def lora(path: Path, base: Path, rank: int) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    config = LoraConfig(
        r=rank, lora_alpha=rank + 1, target_modules=["q_proj"], init_lora_weights=False
    )
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(str(path))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: a base model, three adapters, a plan, code and a report."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(str(folder / "base"))
    for name, rank in (("a", 8), ("b", 4), ("c", 2)):
        lora(folder / "adapters" / name, folder / "base", rank)
    hotswap.plan(sorted((folder / "adapters").iterdir())).save(folder / "hotswap-plan.json")
    (folder / "src").mkdir()
    (folder / "src" / "serve.py").write_text("import hotswap\n")
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text(dumps(derive(gathered())), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pipelines(project: Path) -> None:
    pytest.importorskip("diffusers", reason="not run: diffusers is not installed")
    from tests.support.pipelines import stable_diffusion, write_pipeline_adapter

    pipeline = stable_diffusion(project / "pipeline")
    pipeline.save_pretrained(str(project / "pipeline"))
    for number, name in enumerate(("first", "second")):
        write_pipeline_adapter(
            project / "loras" / name,
            stable_diffusion(project / "other"),
            seed=number,
            parts=("unet", "text_encoder"),
            r=4 * (number + 1),
        )


@pytest.fixture
def _here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(project)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    with quickly():
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda p: p.stem
)
def test_the_python_blocks_of_a_page_run(page: Path, request: pytest.FixtureRequest) -> None:
    if page.name == "exported.md" and default_backend() != "inductor":
        pytest.skip("not run: AOTInductor needs a C++ compiler, and none was found")
    if page.name == "diffusers.md":
        request.getfixturevalue("pipelines")
    names: dict[str, Any] = {"__name__": "docs"}
    exec(SET_UP.get(page.name, ""), names)  # noqa: S102  (our own text)
    for number, block in enumerate(blocks(page, "python"), 1):
        code = compile(block, f"{page.name}, block {number}", "exec")
        exec(code, names)  # noqa: S102  (this is what the test is for)


class TestTheExamplesForCi:
    PAGE = ROOT / "docs" / "how-to" / "ci.md"

    def yaml(self, number: int) -> Any:
        import yaml

        return yaml.safe_load(blocks(self.PAGE, "yaml")[number])

    def test_the_steps_of_the_workflow_run_and_keep_the_evidence(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("matplotlib", reason="not run: the extra 'report' is not installed")
        steps = self.yaml(0)["jobs"]["verify"]["steps"]
        lint, verify = (s["run"] for s in steps if s.get("run", "").startswith("hotswap "))
        done = shell(project, lint)
        assert done.returncode == 0, done.stdout + done.stderr
        # one law stands for all: the whole contract runs in test_readme.py
        monkeypatch.chdir(project)
        words = shlex.split(verify)
        assert words[:2] == ["hotswap", "verify"]
        done = warm.verify(*words[2:], "--no-timing", "--", "-k", "swap_equals_load")
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].startswith("incomplete: ")
        kept = next(step["with"]["path"] for step in steps if "upload" in step.get("uses", ""))
        found = json.loads((project / kept / "report.json").read_text(encoding="utf-8"))
        assert [(a["name"], a["verdict"]) for a in found["adapters"]] == [
            ("a", "passed"),
            ("b", "passed"),
            ("c", "passed"),
        ]

    def test_the_extras_that_the_workflow_installs_exist(self) -> None:
        import tomllib

        extras = re.findall(r"pytest-hotswap\[(.+?)\]", self.PAGE.read_text(encoding="utf-8"))
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        known = declared["project"]["optional-dependencies"]
        assert extras
        assert all(extra in known for found in extras for extra in found.split(","))

    def test_the_hooks_of_pre_commit_exist_and_their_entries_run(self, project: Path) -> None:
        import yaml

        offered = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
        entries = {hook["id"]: hook["entry"] for hook in offered}
        for hook in self.yaml(1)["repos"][0]["hooks"]:
            words = [entries[hook["id"]], *hook.get("args", ["src/serve.py"])]
            done = shell(project, " ".join(words))
            assert done.returncode == 0, done.stdout + done.stderr


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": scripts, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_every_option_of_verify_is_on_its_page() -> None:
    from hotswap.cli.main import app

    command = app("verify").commands["verify"]
    page = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    options = [name for p in command.params for name in p.opts if name.startswith("-")]
    assert len(options) > 15
    assert [name for name in options if not re.search(rf"`[^`]*{name}\b", page)] == ["--verbose"]


def test_every_public_name_is_on_the_page_of_names() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", page, re.M)}
    missing = {name for name in hotswap.__all__ if not name.startswith("_")} - named
    assert missing <= {"HotswapError"}  # documented with its module, hotswap.errors


def test_every_field_of_the_report_is_on_its_page() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    table = page[page.index("| field |") :]
    assert [field for field in derive(gathered()) if f"`{field}`" not in table] == []
