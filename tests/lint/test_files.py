"""Modules, notebooks and Markdown are read with their own lines; noqa comments are obeyed."""

from __future__ import annotations

import json
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
def test_a_broken_notebook_has_no_findings(text: str) -> None:
    assert check_text(f"{text}hotswap", path="demo.ipynb") == []


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
def test_what_cannot_be_parsed_has_no_findings(text: str) -> None:
    assert check_text(f"import hotswap\n{text}") == []


@pytest.mark.parametrize(
    ("comment", "silent"),
    [
        ("# noqa", True),
        ("# NOQA: HSW207", True),
        ("# noqa: E501, HSW207", True),
        ("# noqa: HSW2", True),
        ("# noqa: HSW206", False),
        ("# noqa: E501", False),
    ],
)
def test_noqa(comment: str, silent: bool) -> None:
    line = BAD.splitlines()[3]
    assert (check_text(f"{line}  {comment}\n") == []) == silent
    spread = line.replace("(", "(\n    ").replace(")", ",\n)")
    assert (check_text(f"{spread}  {comment}\n") == []) == silent


def test_folders_are_searched_but_not_environments(tmp_path: Path) -> None:
    for name in ("a.py", "b/c.ipynb", "b/d.md", "b/e.txt", ".venv/f.py", "node_modules/g.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert [p.name for p in find([tmp_path])] == ["a.py", "c.ipynb", "d.md"]
    assert [p.name for p in find([tmp_path / "b/e.txt"])] == ["e.txt"]


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
