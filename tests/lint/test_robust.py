"""The linter crashes on nothing, and what it costs is printed."""

from __future__ import annotations

import ast
import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from hotswap.lint.check import check_text, findings_in
from hotswap.lint.files import concerns, find, parse
from hotswap.lint.relevance import Relevance
from tests.support.lint_samples import PROGRAMS, SAMPLES

NAMES = st.sampled_from(["pipe", "model", "m", "self", "x", "paths"])
TEXTS = st.sampled_from(['"a"', '"x"', "None", "8", "0.5", "True", "x", "paths[0]", "f'{x}/a'"])
LINES = [
    "{0} = FluxPipeline.from_pretrained({2})",
    "{0} = PeftModel.from_pretrained({1}, {2})",
    "{0} = torch.compile({1})",
    "{0}.transformer = torch.compile({1}.transformer)",
    "{0}.compile()",
    "{0}.load_lora_weights({2}, adapter_name={3}, hotswap={2})",
    "{0}.enable_lora_hotswap(target_rank={2})",
    "prepare_model_for_compiled_hotswap({0}, target_rank={2})",
    "hotswap_adapter({0}, {2}, adapter_name={3})",
    "{0}.set_adapters({2}, **{1})",
    "{0}.layers[0].scaling[{2}] = {3}",
    "{0}({1})",
    "{0}, *{1} = {1}, {2}, {3}",
    "{0} += [{1}]",
    "{0} = [{1} for {1} in {0} if {2}]",
    "{0} = lambda *a, {1}={2}, **k: {0}({1}, *a, **k)",
    "def {0}({1}={2}, /, *, k={3}):\n    return {0}({1}) if k else {1}",
    "class {0}({1}):\n    a = {2}\n    def __init__(self): self.{1} = {0}()",
    "for {0} in {1}:\n    break\nelse:\n    {0} = {2}",
    "while {0}:\n    {1} = {0}\n    continue",
    "try:\n    {0}({1})\nexcept Exception as {1}:\n    raise\nfinally:\n    {0} = {2}",
    "with torch.no_grad() as {0}, {1}:\n    {0}({2})",
    "match {0}:\n    case {{'a': {1}}}:\n        pass\n    case [{0}, *_]:\n        {0}()",
    "if ({0} := {1}) and not {2}:\n    del {0}",
    "global {0}",
    "return",
    "assert {0} is not {1}, {2}",
]
STATEMENTS = st.builds(
    lambda line, a, b, c, d: line.format(a, b, c, d),
    st.sampled_from(LINES),
    NAMES,
    NAMES,
    TEXTS,
    TEXTS,
)


@settings(max_examples=300)
@given(st.lists(STATEMENTS, min_size=1, max_size=12), st.booleans())
def test_no_program_crashes_it(statements: list[str], in_function: bool) -> None:
    text = "\n".join(statements)
    if in_function:
        text = "def f(pipe, model):\n" + "\n".join(f"    {line}" for line in text.splitlines())
    for found in check_text(f"import hotswap\n{text}\n", select=["HSW2"]):
        assert found.line is not None
        assert found.related is not None


@pytest.mark.parametrize(
    "path", sorted([*PROGRAMS.glob("*.py"), *SAMPLES.glob("*.py")]), ids=lambda p: p.stem
)
def test_no_mutilated_program_crashes_it(path: Path) -> None:
    for text in mutilated(path.read_text(), seed=path.name):
        check_text(f"# hotswap\n{text}", select=["HSW2"])


def mutilated(text: str, *, seed: str) -> Iterator[str]:
    """Yield the program with a line doubled, two swapped, and one put into a function."""
    pick = random.Random(seed)  # noqa: S311
    lines = text.splitlines()
    for _ in range(5):
        one, two = sorted(pick.sample(range(len(lines)), 2))
        yield "\n".join([*lines[:one], lines[two], *lines[one:]])
        yield "\n".join(
            [*lines[:one], lines[two], *lines[one + 1 : two], lines[one], *lines[two + 1 :]]
        )
        yield "\n".join([*lines[:one], "def f(self):", *(f"    {line}" for line in lines[one:])])


def test_what_is_too_long_is_told_and_the_rest_is_analysed() -> None:
    branches = "\n".join(
        f"    if f({n}):\n        pipe.transformer.compile()\n        pipe({n})"
        for n in range(3000)
    )
    late = "def late(pipe):\n    pipe.load_lora_weights('a', hotswap=True)\n"
    text = f"# hotswap\ndef many(pipe):\n{branches}\n{late}"
    assert [(f.code, f.line) for f in check_text(text)] == [("HSW200", 2), ("HSW207", 9004)]
    body = text.replace("def many(pipe):", "if True:")
    assert [(f.code, f.line) for f in check_text(body)] == [("HSW200", 2), ("HSW207", 9004)]
    assert check_text("hotswap = " + "(" * 80 + "x" + ")" * 80) == []


def test_what_is_nested_too_deeply_is_told() -> None:
    text = "import hotswap\nhotswap.swap(" + "+".join(["x"] * 3000) + ")"
    assert [f.code for f in check_text(text)] == ["HSW200"]


@pytest.mark.parametrize(
    ("body", "matters"),
    [
        ("self.swap()", True),
        ("Thread(target=self.swap).start()", True),
        ('"""Call swap to swap."""', False),
        ("return 0  # swap", False),
    ],
)
def test_what_a_function_names_matters_but_not_what_its_comments_name(
    body: str, matters: bool
) -> None:
    text = (
        "class Server:\n"
        "    def swap(self):\n"
        "        hotswap_adapter(self.model, 'b', 'default')\n"
        f"    def serve(self):\n        {body}\n"
    )
    tree = ast.parse(text)
    server = tree.body[0]
    assert isinstance(server, ast.ClassDef)
    relevance = Relevance(tree)
    relevance.complete()
    assert relevance.touches(server.body[1]) is matters


def test_installed_libraries_are_linted_clean_and_fast(capsys: pytest.CaptureFixture[str]) -> None:
    roots = [Path(str(package.__file__)).parent for package in (peft, transformers)]
    gc.collect()
    gc.freeze()  # hotswap lint runs without torch, whose objects cost 0.25 s per full collection
    begun = time.process_time()
    files = linted = parsing = analysing = 0.0
    found = []
    for path in find(roots):
        files += 1
        data = path.read_bytes()
        if not concerns(data):
            continue
        linted += 1
        start = time.process_time()
        ast.parse(data)
        middle = time.process_time()
        found += [f for chunk in parse(data, path)[0] for f in findings_in(chunk)]
        parsing, analysing = parsing + middle - start, analysing + time.process_time() - middle
    total = time.process_time() - begun
    gc.unfreeze()
    with capsys.disabled():
        print(
            f"\npeft and transformers: {files:.0f} files, {linted:.0f} not skipped, {total:.1f} CPU s; "
            f"these cost {analysing / parsing:.1f} times ast.parse"
        )
    assert found == []
