"""Pairs of programs: a correct one, and the same with one statement removed, exchanged or changed.

What is wrong with the second follows from the change, not from the linter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.support.program_ways import WAYS, Step, Steps, step_at, without_gradients

IMPORTS = """\
import asyncio
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
class Pair:
    """A correct program and a wrong one, and what is wrong: line and code."""

    name: str
    right: str
    wrong: str
    expected: set[tuple[int, str]]


Change = Callable[[Steps, random.Random], Steps]


def _without(name: str, then: str, code: str) -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        left = [step for step in steps if step.name != name]
        return _wrong(left, then, code)

    return change


def _wrong(steps: Steps, name: str, code: str) -> Steps:
    at = step_at(steps, name)
    return [*steps[:at], replace(steps[at], code=code), *steps[at + 1 :]]


def _exchanged(one: str, other: str, code: str, *, at: str) -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        a, b = step_at(steps, one), step_at(steps, other)
        swapped = list(steps)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        return _wrong(swapped, at, code)

    return change


def _loaded_into_compiled(steps: Steps, pick: random.Random) -> Steps:
    """Load after the compile in place; PEFT takes no notice of blocks that are compiled."""
    n = step_at(steps, "compile")
    in_place = steps[n].text.replace("_repeated_blocks", "")
    whole = [*steps[:n], replace(steps[n], text=in_place), *steps[n + 1 :]]
    return _exchanged("load", "compile", "HSW201", at="load")(whole, pick)


def _changed(name: str, old: str, new: str, code: str, *, at: str = "") -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        n = step_at(steps, name)
        text = steps[n].text.replace(old, new)
        assert text != steps[n].text
        return _wrong([*steps[:n], replace(steps[n], text=text), *steps[n + 1 :]], at or name, code)

    return change


def _inserted(text: str, before: str, code: str, *, at: str = "new") -> Change:
    def change(steps: Steps, pick: random.Random) -> Steps:
        n = step_at(steps, before)
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
    steps[step_at(steps, "prepare")] = Step("prepare", "hotswap.prepare(M, target_rank=32)")
    steps[step_at(steps, "swap")] = Step("swap", "hotswap.swap(M, 'adapters/b')")
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

CONSTANTS = {"'slot'": "SLOT", "'default'": "DEFAULT", "=32": "=RANK"}


def _with_constants(steps: Steps) -> Steps:
    """Write names and numbers as constants of the module."""

    def written(text: str) -> str:
        for value, name in CONSTANTS.items():
            text = text.replace(value, name)
        return text

    return [replace(step, text=written(step.text)) for step in steps]


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
                        right = without_gradients(right)
                    wrong = change(right, pick)
                    head = IMPORTS
                    if pick.random() < 0.3:
                        right, wrong = _with_constants(right), _with_constants(wrong)
                        head += "SLOT = 'slot'\nDEFAULT = 'default'\nRANK = 32\n"
                    texts = [
                        head + "\n".join(way(steps, random.Random(name))) + "\n"  # noqa: S311
                        for steps in (right, wrong)
                    ]
                    marks = {
                        (n, line.split("# wrong ")[1])
                        for n, line in enumerate(texts[1].splitlines(), 1)
                        if "# wrong " in line
                    }
                    yield Pair(name, texts[0], texts[1], marks)
