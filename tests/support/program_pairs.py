"""Pairs of programs: a correct one, and the same with one statement removed, exchanged or changed.

What is wrong with the second follows from the change, not from the linter: a program is a
sequence of steps, which is written down in one of many ways (a script, a function, a class,
closures, an application, two helpers), with names and unrelated statements drawn at random.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

NOISE = (
    "started = time.perf_counter()",
    "logger.info('still here')",
    "seeds = [random.randrange(2**31) for _ in range(4)]",
    "options = {'steps': 4, 'guidance': 3.5}",
    "if os.environ.get('VERBOSE'):\n    print('verbose')",
    "for number in range(3):\n    logger.debug(number)",
    "try:\n    os.makedirs('out')\nexcept FileExistsError:\n    pass",
    "torch.backends.cuda.matmul.allow_tf32 = True",
)
IMPORTS = """\
import logging
import os
import random
import time

import hotswap
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

logger = logging.getLogger(__name__)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One statement; ``M`` stands for the model, ``code`` is what is wrong with it.

    ``inside`` is the context manager that it is written in.
    """

    name: str
    text: str
    code: str = ""
    inside: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A correct program and a wrong one, and what is wrong: line and code."""

    name: str
    right: str
    wrong: str
    expected: set[tuple[int, str]]


Steps = list[Step]
Change = Callable[[Steps, random.Random], Steps]


def _step(steps: Steps, name: str) -> int:
    return next(n for n, step in enumerate(steps) if step.name == name)


def _without(name: str, then: str, code: str) -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        left = [step for step in steps if step.name != name]
        return _wrong(left, then, code)

    return change


def _wrong(steps: Steps, name: str, code: str) -> Steps:
    at = _step(steps, name)
    return [*steps[:at], replace(steps[at], code=code), *steps[at + 1 :]]


def _exchanged(one: str, other: str, code: str, *, at: str) -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        a, b = _step(steps, one), _step(steps, other)
        swapped = list(steps)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        return _wrong(swapped, at, code)

    return change


def _loaded_into_compiled(steps: Steps, pick: random.Random) -> Steps:
    """Load after the compile in place; PEFT takes no notice of blocks that are compiled."""
    n = _step(steps, "compile")
    in_place = steps[n].text.replace("_repeated_blocks", "")
    whole = [*steps[:n], replace(steps[n], text=in_place), *steps[n + 1 :]]
    return _exchanged("load", "compile", "HSW201", at="load")(whole, pick)


def _changed(name: str, old: str, new: str, code: str, *, at: str = "") -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        n = _step(steps, name)
        text = steps[n].text.replace(old, new)
        assert text != steps[n].text
        return _wrong([*steps[:n], replace(steps[n], text=text), *steps[n + 1 :]], at or name, code)

    return change


def _inserted(text: str, before: str, code: str, *, at: str = "new") -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        n = _step(steps, before)
        return _wrong([*steps[:n], Step("new", text), *steps[n:]], at, code)

    return change


def _diffusers(pick: random.Random) -> Steps:
    cls = pick.choice(["FluxPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline"])
    part = "transformer" if cls.startswith("Flux") else "unet"
    compiled = pick.choice(
        [
            f"M.{part}.compile()",
            f"M.{part}.compile(mode='max-autotune')",
            f"M.{part}.compile_repeated_blocks()",
        ]
    )
    return [
        Step("make", f"M = {cls}.from_pretrained('base')"),
        Step("enable", "M.enable_lora_hotswap(target_rank=32)"),
        Step("load", "M.load_lora_weights('adapters/a', adapter_name='slot')"),
        Step("compile", compiled),
        Step("run", "M('warm up')"),
        Step("swap", "M.load_lora_weights('adapters/b', adapter_name='slot', hotswap=True)"),
        Step("use", "M('a prompt')"),
    ]


def _peft(pick: random.Random) -> Steps:
    return [
        Step("base", "M = AutoModelForCausalLM.from_pretrained('base')"),
        Step("make", "M = PeftModel.from_pretrained(M, 'adapters/a')"),
        Step("prepare", "prepare_model_for_compiled_hotswap(M, target_rank=32)"),
        Step(
            "compile", pick.choice(["M = torch.compile(M)", "M = torch.compile(M, dynamic=True)"])
        ),
        Step("run", "M(input_ids=batch)"),
        Step("swap", "hotswap_adapter(M, 'adapters/b', adapter_name='default')"),
        Step("use", "M(input_ids=batch)"),
    ]


def _own(pick: random.Random) -> Steps:
    steps = _peft(pick)
    steps[_step(steps, "prepare")] = Step("prepare", "hotswap.prepare(M, target_rank=32)")
    steps[_step(steps, "swap")] = Step("swap", "hotswap.swap(M, 'adapters/b')")
    return steps


WRITTEN: dict[str, Callable[[random.Random], Steps]] = {
    "diffusers": _diffusers,
    "peft": _peft,
    "hotswap": _own,
}
CHANGES: dict[str, dict[str, Change]] = {
    "diffusers": {
        "never enabled": _without("enable", "swap", "HSW205"),
        "never loaded": _without("load", "swap", "HSW209"),
        "enabled after the load": _exchanged("enable", "load", "HSW203", at="enable"),
        "loaded after the compile": _loaded_into_compiled,
        "loaded again plainly": _changed("swap", ", hotswap=True", "", "HSW216"),
        "swapped without a name": _changed("swap", ", adapter_name='slot'", "", "HSW207"),
        "swapped under another name": _changed("swap", "'slot'", "'other'", "HSW208"),
        "loaded beside the slot": _inserted(
            "M.load_lora_weights('adapters/c', adapter_name='extra')", "swap", "HSW206"
        ),
        "strength set after the load": _inserted(
            "M.set_adapters(['slot'], adapter_weights=[0.5])", "swap", "HSW210"
        ),
        "fused when it is swapped": _inserted("M.fuse_lora()", "swap", "HSW211", at="swap"),
        "a rank that is too small": _changed(
            "swap", "adapters/b", "adapters/b-rank64", "HSW204", at="enable"
        ),
        "unloaded and loaded plainly": _changed(
            "swap",
            "M.load_lora_weights('adapters/b', adapter_name='slot', hotswap=True)",
            "M.unload_lora_weights(); M.load_lora_weights('adapters/b', adapter_name='slot')",
            "HSW206",
        ),
    },
    "peft": {
        "never prepared": _without("prepare", "swap", "HSW205"),
        "prepared after the compile": _exchanged("prepare", "compile", "HSW201", at="prepare"),
        "prepared before the adapter": _exchanged("make", "prepare", "HSW202", at="prepare"),
        "swapped under another name": _changed("swap", "'default'", "'other'", "HSW208"),
        "loaded beside the slot": _inserted(
            "M.load_adapter('adapters/c', adapter_name='extra')", "swap", "HSW206"
        ),
        "a weighted adapter": _inserted(
            "M.add_weighted_adapter(['default'], [0.5], 'half')", "swap", "HSW206"
        ),
        "merged when it is swapped": _inserted("M.merge_adapter()", "swap", "HSW211", at="swap"),
        "enabled like transformers": _changed(
            "prepare",
            "prepare_model_for_compiled_hotswap(M, target_rank=32)",
            "M.enable_peft_hotswap(target_rank=32)",
            "HSW213",
        ),
        "a rank that is too small": _changed("prepare", "32", "min([16, 64])", "HSW204"),
        "a number in the scaling": _inserted(
            "for layer in M.modules(): layer.scaling['default'] = 0.5", "swap", "HSW210"
        ),
    },
    "hotswap": {
        "never prepared": _without("prepare", "swap", "HSW205"),
        "prepared after the compile": _exchanged("prepare", "compile", "HSW201", at="prepare"),
        "prepared before the adapter": _exchanged("make", "prepare", "HSW202", at="prepare"),
        "swapped under another name": _changed(
            "swap", "'adapters/b')", "'adapters/b', adapter_name='x')", "HSW208"
        ),
    },
}
"""Library → what is done to the steps that makes them wrong."""


# -- ways to write steps down ----------------------------------------------------------------------


def _lines(steps: Steps, model: str, pick: random.Random) -> list[str]:
    """Write steps with unrelated statements in between; a mark says what is wrong with a line."""
    lines: list[str] = []
    for step in steps:
        if pick.random() < 0.3:
            lines += pick.choice(NOISE).split("\n")
        text = step.text.replace("M", model) if "M" in step.text else step.text
        for known in ("AutoModelForCausalLM", "PeftModel"):  # names with a capital M of their own
            text = text.replace(known.replace("M", model), known)
        mark = f"  # wrong {step.code}" if step.code else ""
        if step.inside:
            lines += [f"with {step.inside}:", f"    {text}{mark}"]
        else:
            lines.append(f"{text}{mark}")
    return lines


def _without_gradients(steps: Steps) -> Steps:
    """Write every run of the model in ``torch.inference_mode()``."""
    return [
        replace(step, inside="torch.inference_mode()") if step.name in ("run", "use") else step
        for step in steps
    ]


def _split(steps: Steps) -> tuple[Steps, Steps]:
    """Divide the steps into those that set up and those of a request."""
    at = _step(steps, "swap")
    while at and steps[at - 1].name == "new":
        at -= 1
    return steps[:at], steps[at:]


def _indent(lines: list[str], depth: int = 1) -> list[str]:
    return [f"{'    ' * depth}{line}" for line in lines]


def _script(steps: Steps, pick: random.Random) -> list[str]:
    return ["batch = torch.ones(1, 8)", *_lines(steps, _name(pick), pick)]


def _function(steps: Steps, pick: random.Random) -> list[str]:
    name = pick.choice(["main", "serve", "demo"])
    head = pick.choice([f"def {name}(batch=None):", f"async def {name}(batch=None):"])
    tail = [] if pick.random() < 0.5 or head.startswith("async") else ["", "", f"{name}()"]
    return [head, *_indent(_lines(steps, _name(pick), pick)), *tail]


def _module(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = _name(pick)
    body = _lines(then, model, pick)
    again = any(line.startswith(f"{model} = ") for line in body)
    handler = [f"global {model}", *body] if again else body
    head = pick.choice(["def request(prompt):", "async def request(prompt):"])
    return [
        "batch = torch.ones(1, 8)",
        *_lines(first, model, pick),
        "",
        "",
        head,
        *_indent(handler),
    ]


def _class(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = f"self.{_name(pick)}"
    start = pick.choice(["__init__", "setup", "start"])
    head = [
        "class Service:",
        "    batch = None",
        "",
        f"    def {start}(self):",
        "        batch = None",
    ]
    request = ["", "    def request(self, prompt):", "        batch = prompt"]
    tail = ["", "", "service = Service()"] if pick.random() < 0.5 else []
    return [
        *head,
        *_indent(_lines(first, model, pick), 2),
        *request,
        *_indent(_lines(then, model, pick), 2),
        *tail,
    ]


def _closure(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = _name(pick)
    body = _lines(then, model, pick)
    again = any(line.startswith(f"{model} = ") for line in body)
    inner = [f"nonlocal {model}", *body] if again else body
    return [
        "def create():",
        *_indent(
            ["batch = torch.ones(1, 8)", *_lines(first, model, pick), "", "def request(prompt):"]
        ),
        *_indent(inner, 2),
        "",
        "    return request",
    ]


def _helpers(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model, other = _name(pick), _name(pick)
    return [
        "def open_model(batch=None):",
        *_indent([*_lines(first, model, pick), f"return {model}"]),
        "",
        "",
        f"def request({other}, batch=None):",
        *_indent(_lines(then, other, pick)),
        "",
        "",
        "request(open_model())",
    ]


def _data_class(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model, field = _name(pick), pick.choice(["engine", "inner", "net"])
    return [
        "from dataclasses import dataclass",
        "",
        "",
        "@dataclass",
        "class Holder:",
        f"    {field}: object",
        "    count: int = 0",
        "",
        "",
        "def build(batch=None):",
        *_indent([*_lines(first, model, pick), f"return Holder({model})"]),
        "",
        "",
        "holder = build()",
        "",
        "",
        "def request(batch):",
        *_indent(_lines(then, f"holder.{field}", pick)),
    ]


def _application(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    kept = f"app.state.{_name(pick)}"
    return [
        "from contextlib import asynccontextmanager",
        "from fastapi import FastAPI, Request",
        "",
        "",
        "@asynccontextmanager",
        "async def lifespan(app):",
        *_indent(["batch = torch.ones(1, 8)", *_lines(first, kept, pick), "yield"]),
        "",
        "",
        "app = FastAPI(lifespan=lifespan)",
        "",
        "",
        "@app.post('/request')",
        "async def answer(request: Request, batch: str):",
        *_indent(_lines(then, f"request.{kept}", pick)),
    ]


WAYS = (_script, _function, _module, _class, _closure, _helpers, _data_class, _application)


def _name(pick: random.Random) -> str:
    return pick.choice(["pipe", "model", "engine", "painter", "llm", "x", "speaker", "base", "net"])


def pairs(number: int) -> Iterator[Pair]:
    """Yield that many pairs for every change and every way to write it down."""
    for library, changes in CHANGES.items():
        for title, change in changes.items():
            for way in WAYS:
                for seed in range(number):
                    name = f"{library}: {title}, {way.__name__.strip('_')} {seed}"
                    pick = random.Random(name)  # noqa: S311
                    right = WRITTEN[library](pick)
                    if pick.random() < 0.3:
                        right = _without_gradients(right)
                    wrong = change(right, pick)
                    texts = [
                        IMPORTS + "\n".join(way(steps, random.Random(name))) + "\n"  # noqa: S311
                        for steps in (right, wrong)
                    ]
                    marks = {
                        (n, line.split("# wrong ")[1])
                        for n, line in enumerate(texts[1].splitlines(), 1)
                        if "# wrong " in line
                    }
                    yield Pair(name, textwrap.dedent(texts[0]), texts[1], marks)
