"""Python in documents is read with the lines of the document."""

from __future__ import annotations

import pytest

from hotswap.lint.check import check_text

FIRST = "from diffusers import FluxPipeline\npipe = FluxPipeline.from_pretrained('x')"
SWAP = "pipe.load_lora_weights('a', hotswap=True)"


def lines(text: str, path: str) -> list[tuple[str, int | None, int | None]]:
    return [(f.code, f.line, f.column) for f in check_text(text, path=path)]


@pytest.mark.parametrize("suffix", [".markdown", ".md", ".mdx", ".qmd"])
def test_a_fence_is_a_program(suffix: str) -> None:
    text = f"# Title\n\n```python\n{FIRST}\n{SWAP}\n```\n\n~~~py\n{SWAP}\n~~~\n"
    assert lines(text, f"page{suffix}") == [("HSW207", 6, 1), ("HSW207", 10, 1)]


def test_a_shorter_fence_does_not_end_a_longer_one() -> None:
    text = f"````python\nnote = '''\n```\n'''\n{SWAP}\n````\n```bash\n{SWAP}\n```\n"
    assert lines(text, "page.md") == [("HSW207", 5, 1)]


def test_executed_cells_of_quarto_are_one_program() -> None:
    head = "---\ntitle: x\n---\n\n"
    text = (
        f"{head}```{{python}}\n#| echo: false\n{FIRST}\n```\n\n```{{python}}\n%time {SWAP}\n```\n"
    )
    assert lines(text, "page.qmd") == [("HSW207", 12, 1)]
    (found,) = check_text(text, path="page.qmd")
    assert found.snippet == SWAP


@pytest.mark.parametrize(
    "fence", ["```{code-block} python", "```{code} py", ":::{code-block} python"]
)
def test_a_directive_of_myst_is_a_program(fence: str) -> None:
    text = f"::: note\n\n{fence}\n:linenos:\n\n{SWAP}\n{fence[:3]}\n\n:::\n"
    assert lines(text, "page.md") == [("HSW207", 6, 1)]
    assert lines(text.replace("py", "sh"), "page.md") == []


def test_code_cells_of_myst_are_one_program() -> None:
    first = f"```{{code-cell}} ipython3\n:tags: [hide]\n{FIRST}\n```\n"
    text = f"# x\n\n{first}\n```{{code-cell}}\n{SWAP}\n```\n"
    assert lines(text, "page.md") == [("HSW207", 10, 1)]


@pytest.mark.parametrize("directive", ["code-block:: python", "code:: py", "sourcecode:: python"])
def test_a_directive_of_restructured_text_is_a_program(directive: str) -> None:
    text = f"Title\n=====\n\n.. {directive}\n   :linenos:\n\n   {SWAP}\n\nText.\n"
    assert lines(text, "page.rst") == [("HSW207", 7, 4)]


def test_another_language_and_text_are_no_programs() -> None:
    text = f".. code-block:: bash\n\n   {SWAP}\n\n.. note::\n\n   {SWAP}\n"
    assert lines(text, "page.rst") == []


def test_a_block_that_is_no_python_is_not_told() -> None:
    assert lines("```python\nhotswap(...\n```\n", "page.md") == []
