"""Which files there are; modules, notebooks and Markdown are read with their own lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hotswap
from hotswap.lint.check import check_source, check_text
from hotswap.lint.files import concerns, find

BAD = """\
import torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained("base")
pipe.load_lora_weights("b", hotswap=True)
"""


def notebook(*cells: str) -> str:
    made = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    return json.dumps({"cells": [{"cell_type": "markdown", "source": ["# x"]}, *made]})


def test_a_notebook_is_one_program_and_a_finding_names_its_cell() -> None:
    text = notebook(
        "%pip install diffusers\nimport torch\nfrom diffusers import FluxPipeline",
        "!nvidia-smi\npipe = FluxPipeline.from_pretrained('base')\npipe.load_lora_weights('a')",
        "%%bash\nls",
        "this is not python",
        "# now\npipe.enable_lora_hotswap(target_rank=8)",
    )
    (found,) = check_text(text, path="demo.ipynb")
    assert (found.code, found.where, found.line) == ("HSW203", "demo.ipynb::cell 6", 2)
    assert found.snippet == "pipe.enable_lora_hotswap(target_rank=8)"
    assert [(r.where, r.line) for r in found.related] == [("demo.ipynb::cell 3", 3)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [{}]}', "\0"])
def test_a_broken_notebook_is_told_not_to_be_analysed(text: str) -> None:
    (found,) = check_text(f"{text}hotswap", path="demo.ipynb")
    assert (found.code, found.where, found.severity) == ("HSW200", "demo.ipynb", "warning")
    assert check_text(f"{text}nothing", path="demo.ipynb") == []


def test_a_broken_cell_is_told_and_the_others_are_analysed() -> None:
    cell = "from diffusers import FluxPipeline\npipe = FluxPipeline.from_pretrained('x')"
    swap = "pipe.load_lora_weights('a', hotswap=True)"
    broken, found = check_text(notebook(cell, "def (:", swap), path="demo.ipynb")
    assert (broken.code, broken.where, broken.line) == ("HSW200", "demo.ipynb::cell 3", 1)
    assert (found.code, found.where) == ("HSW207", "demo.ipynb::cell 4")


def test_fenced_python_is_read_with_the_lines_of_the_document() -> None:
    last = BAD.splitlines()[3]
    text = f"# Title\n\n```python\n{BAD}```\n\n```bash\nhotswap\n```\n\n  ```py\n  {last}\n  ```\n"
    assert [(f.line, f.column, f.code) for f in check_text(text, path="a.md")] == [
        (7, 1, "HSW207"),
        (15, 3, "HSW207"),
    ]


def test_a_session_and_a_placeholder_are_understood() -> None:
    session = ">>> pipe.load_lora_weights(<path of b>, hotswap=True)\nNone\n"
    (found,) = check_text(f"```python\n{session}```\n", path="a.md")
    assert (found.line, found.code) == (2, "HSW207")


def test_the_blocks_of_a_document_are_programs_of_their_own() -> None:
    first = "pipe = FluxPipeline.from_pretrained('x')\npipe.load_lora_weights('a')\n"
    text = f"```python\n{first}```\n```python\npipe.enable_lora_hotswap(target_rank=8)\n```\n"
    assert check_text(text, path="a.md") == []


def test_columns_count_characters() -> None:
    (found,) = check_text('"é"; pipe.load_lora_weights("b", hotswap=True)')
    assert (found.column, found.end_column) == (6, 47)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_other_encodings_and_line_ends_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.py"
    cookie = "# -*- coding: latin-1 -*-\n" if encoding == "latin-1" else "# é\n"
    path.write_bytes((cookie + "x = 'é'\n" + BAD).replace("\n", "\r\n").encode(encoding))
    assert [f.line for f in check_source(path)] == [6]


@pytest.mark.parametrize("text", ["def f(:", "\0", "x = 1\n\tif y:", "(" * 500, "\ud800"])
def test_what_cannot_be_parsed_is_told(text: str) -> None:
    (found,) = check_text(f"import hotswap\n{text}")
    assert (found.code, found.severity) == ("HSW200", "warning")
    assert check_text(text) == []


def test_a_syntax_error_is_told_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "serve.py"
    path.write_text("import hotswap\nhotswap.swap(model, 'a'\n")
    (found,) = check_source(path)
    assert (found.line, found.column, found.snippet) == (2, 13, "hotswap.swap(model, 'a'")
    assert "'(' was never closed" in found.message
    assert check_source(path, ignore=["not-analysed"]) == []


def test_folders_are_searched_but_not_environments(tmp_path: Path) -> None:
    for name in (
        "a.py",
        "b/c.ipynb",
        "b/d.md",
        "b/e.txt",
        ".venv/f.py",
        "node_modules/g.py",
        "h.pyi",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert [p.name for p in find([tmp_path])] == ["a.py", "h.pyi", "c.ipynb", "d.md"]
    assert [p.name for p in find([tmp_path / "b/e.txt"])] == ["e.txt"]


def test_what_git_ignores_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*.gen.py\n/out/\n")
    names = ("a.py", "b.gen.py", "out/c.py", "src/out/d.py", "src/e.gen.py", "src/f.py")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "src" / ".gitignore").write_text("f.py\n!e.gen.py\n")
    found = [p.relative_to(tmp_path).as_posix() for p in find([tmp_path])]
    assert found == ["a.py", "src/e.gen.py", "src/out/d.py"]
    assert [p.name for p in find([tmp_path / "src"])] == ["e.gen.py", "d.py"]
    assert [p.name for p in find([tmp_path / "out"])] == ["c.py"]


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(BAD)
    (tmp_path / "gone.py").symlink_to("nowhere")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    assert [p.name for p in find([tmp_path])] == ["a.py"]
    assert [f.line for f in check_source(tmp_path)] == [4]


def test_a_file_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text(BAD)
    (tmp_path / "b.py").write_text(BAD)
    usual = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "a.py":
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert [(Path(f.where).name, f.code) for f in check_source(tmp_path)] == [
        ("a.py", "HSW200"),
        ("b.py", "HSW207"),
    ]
    with pytest.raises(PermissionError):
        check_source(tmp_path / "a.py")


def test_a_file_is_skipped_unless_it_mentions_what_rules_are_about() -> None:
    assert concerns(b"hotswap")
    assert concerns(b"torch.compile(m); m.load_adapter('a')")
    assert not concerns(b"torch.compile(m)")
    assert not concerns(b"re.compile('x'); m.load_adapter('a')")


def test_findings_are_sorted_by_path_line_and_column(tmp_path: Path) -> None:
    for name in ("b.py", "a.py"):
        (tmp_path / name).write_text(BAD + BAD)
    places = [(Path(f.where).name, f.line) for f in hotswap.check_source(tmp_path)]
    assert places == [("a.py", 4), ("a.py", 8), ("b.py", 4), ("b.py", 8)]


def test_the_rank_of_an_adapter_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "adapter_config.json").write_text('{"r": 4, "rank_pattern": {"q": 64}}')
    path = tmp_path / "serve.py"
    path.write_text(
        "from diffusers import FluxPipeline\n"
        "pipe = FluxPipeline.from_pretrained('base')\n"
        "pipe.enable_lora_hotswap(target_rank=32)\n"
        "pipe.load_lora_weights('wide', adapter_name='x')\n"
    )
    (found,) = check_source(path)
    assert (found.code, found.line) == ("HSW204", 3)
    (tmp_path / "wide" / "adapter_config.json").write_text("{")
    assert check_source(path) == []


def test_linting_loads_no_torch() -> None:
    script = (
        "import sys, hotswap; hotswap.check_source('tests/samples'); print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
