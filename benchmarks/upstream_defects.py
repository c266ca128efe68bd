"""Run the contract on PEFT, transformers and diffusers as installed, and write docs/upstream-defects.md.

    python benchmarks/upstream_defects.py            compare with the page; exit 1 if it is not true any more
    python benchmarks/upstream_defects.py --write    write the page

A law that is broken and was not, or was broken and is not any more, is a difference.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hotswap.cli.verify.demo import ADAPTERS, write_demo
from hotswap.report.laws import LAWS
from pytest_hotswap import (
    DiffusersSubject,
    PeftSubject,
    ReferenceSubject,
    Subject,
    TransformersSubject,
)
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "upstream-defects.md"
PACKAGES = ("peft", "transformers", "diffusers", "torch")
LONGEST = 150

sys.path.insert(0, str(ROOT))  # the micro models and pipelines are the tests'
from tests.support.models import TOKENS, micro, write_fleet  # noqa: E402
from tests.support.pipelines import flux, outputs, write_pipeline_adapter  # noqa: E402

BOTH = {"target_modules": ["first", "second"], "use_dora": True}
IMAGE: dict[str, dict[str, Any]] = {"one": {"r": 2, "lora_alpha": 3}}
MODEL = {
    **IMAGE,
    "two": {"r": 4, "lora_alpha": 2},
    "unequal": {"r": 2, "lora_alpha": 4, "rank_pattern": {"to_q": 4}},
}
REFUSED = {**IMAGE, "pattern": {"r": 2, "lora_alpha": 3, "alpha_pattern": {"to_q": 6}}}
FLEETS: dict[str, dict[str, dict[str, Any]]] = {
    "equal": {
        "one": {**ADAPTERS["formal"], "lora_alpha": 8},
        "two": {**ADAPTERS["formal"], "lora_alpha": 2},
    },
    "kinds": {"one": {"r": 4, "lora_alpha": 12}, "two": {"r": 2, "lora_alpha": 2}},
    "dora": {"one": {"r": 4, "lora_alpha": 12, **BOTH}, "two": {"r": 2, "lora_alpha": 2, **BOTH}},
}


class Micro(Subject):
    """A grouped convolution, an embedding and linear layers."""

    def base_model(self) -> Any:
        return micro(groups=2)

    def inputs(self) -> dict[str, Any]:
        return {"tokens": TOKENS}


class MicroReference(Micro, ReferenceSubject):
    """With hotswap."""


class MicroPeft(Micro, PeftSubject):
    """With PEFT's functions."""


class Pipeline(DiffusersSubject):
    """A Flux pipeline; its call returns what its text encoder and its transformer compute."""

    folder: Path

    def pipeline(self) -> Any:
        made = flux(self.folder)
        made.__class__ = type("Encoded", (type(made),), {"__call__": lambda s, **_: (outputs(s),)})
        return made

    def inputs(self) -> dict[str, Any]:
        return {}


class Transformer(Pipeline):
    """The transformer of Flux on its own."""

    def pipeline(self) -> Any:
        return flux(self.folder).transformer

    def inputs(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(3)
        shapes = {
            "hidden_states": (1, 16, 4),
            "encoder_hidden_states": (1, 8, 16),
            "pooled_projections": (1, 16),
            "img_ids": (16, 3),
            "txt_ids": (8, 3),
        }
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return drawn | {"timestep": torch.tensor([1.0])}


@dataclass(frozen=True, slots=True)
class Case:
    """A deployment: its name in the table, what it is, and the adapters' folder below the scratch one."""

    name: str
    subject: type[Subject]
    adapters: str


CASES = (
    Case("hotswap", ReferenceSubject, "adapters"),
    Case("hotswap, layer kinds", MicroReference, "kinds"),
    Case("hotswap, DoRA", MicroReference, "dora"),
    Case("PEFT", PeftSubject, "adapters"),
    Case("PEFT, layer kinds", MicroPeft, "kinds"),
    Case("PEFT, DoRA", MicroPeft, "dora"),
    Case("transformers", TransformersSubject, "adapters"),
    Case("transformers, equal ranks", TransformersSubject, "equal"),
    Case("diffusers, a model", Transformer, "model"),
    Case("diffusers, alpha_pattern", Transformer, "refused"),
    Case("diffusers, a pipeline", Pipeline, "pipeline"),
)
_PEFT, _TRANSFORMERS, _DIFFUSERS = (
    f"https://github.com/huggingface/{name}/" for name in ("peft", "transformers", "diffusers")
)
KNOWN: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "a swap ignores `rank_pattern`",
        f"[peft#3738]({_PEFT}issues/3738)",
        (("PEFT", "swap-equals-load"), ("diffusers, a model", "swap-equals-load")),
    ),
    (
        "swapping `default` zeroes `default2`: names are matched as substrings",
        f"[peft#3780]({_PEFT}issues/3780)",
        (("PEFT", "swap-isolated"), ("diffusers, a model", "swap-isolated")),
    ),
    (
        "`set_scale` after a swap uses the alpha and rank of the first adapter; the configs stay its too",
        f"[diffusers#11408]({_DIFFUSERS}issues/11408), [peft#3581]({_PEFT}issues/3581)",
        (("PEFT", "knobs-follow"), ("diffusers, a model", "knobs-follow")),
    ),
    (
        "tensors are copied one by one and not validated: damaged adapters are swapped in, whole or half",
        "",
        (("PEFT", "swap-atomic"), ("diffusers, a model", "swap-atomic")),
    ),
    (
        "a rank above the prepared one is accepted and replaces the parameter",
        "",
        (("PEFT", "rank-bound"), ("diffusers, a model", "rank-bound")),
    ),
    (
        "a model with a compiled submodule or forward is prepared all the same",
        "",
        (("PEFT", "prepare-before-compile"),),
    ),
    (
        "embeddings are not prepared, and a swap of one is an AttributeError",
        "",
        (("PEFT, layer kinds", "preparation-covers"), ("PEFT, layer kinds", "swap-equals-load")),
    ),
    ("a swap between DoRA adapters is a KeyError", "", (("PEFT, DoRA", "swap-equals-load"),)),
    (
        "`enable_peft_hotswap` pads nothing; another rank is an error, another alpha is ignored in silence",
        f"[transformers#45682]({_TRANSFORMERS}pull/45682)",
        (
            ("transformers", "preparation-covers"),
            ("transformers", "swap-equals-load"),
            ("transformers, equal ranks", "swap-equals-load"),
        ),
    ),
    (
        "a swap that is refused deletes the adapter that was serving",
        "",
        (("diffusers, alpha_pattern", "swap-atomic"),),
    ),
    (
        "adapters of text encoders cannot be swapped, which is said after the denoiser was",
        "[lora-fast](https://huggingface.co/blog/lora-fast) (that they cannot)",
        (("diffusers, a pipeline", "swap-equals-load"), ("diffusers, a pipeline", "rank-bound")),
    ),
)
"""What was known before: in words, where it is reported, and which findings show it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A law that a deployment breaks: how often, and the first time in words."""

    name: str
    law: str
    count: int
    text: str


def write_fleets(folder: Path) -> Path:
    """Write every base model and adapter; return the Llama."""
    from transformers import LlamaForCausalLM

    base, _ = write_demo(folder)
    for name, fleet in FLEETS.items():
        model = LlamaForCausalLM.from_pretrained(base) if name == "equal" else micro(groups=2)
        write_fleet(folder / name, model, fleet)
    for where, images in (("model", MODEL), ("refused", REFUSED), ("pipeline", MODEL)):
        parts = ("transformer", "text_encoder") if where == "pipeline" else ("transformer",)
        for seed, (name, config) in enumerate(images.items(), start=1):
            path = folder / where / name
            write_pipeline_adapter(path, flux(folder), seed=seed, parts=parts, **config)
    return base


def findings(folder: Path) -> Iterator[Row]:
    """Judge every deployment by every law."""
    base = write_fleets(folder)
    Pipeline.folder = folder
    for case in CASES:
        subject = case.subject(base=str(base), adapters=[str(folder / case.adapters / "*")])
        torch._dynamo.reset()
        deployment = Deployment(subject, folder / f"derived {case.name}")
        _ = deployment.unprepared_recompiles  # while torch remembers no number that has changed
        for law in LAWS:
            found = list(violations(deployment, law))
            if found:
                yield Row(case.name, law, len(found), _sentence(found[0], law))


def _sentence(text: str, law: str) -> str:
    first = " ".join(text.removeprefix(f"{law}: ").split()).partition("; ")[0].replace("|", "/")
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}…"


def page(rows: list[Row]) -> str:
    """The page in Markdown."""
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in PACKAGES)
    lines = [
        "# What the contract finds upstream",
        "",
        f"The contract on {versions}, backend eager: a 2-layer Llama and four adapters that differ in "
        "rank, alpha, rank pattern and target modules, a micro model with an embedding and a grouped "
        "convolution, and a micro Flux pipeline. Every law that is broken is in the table, with how often, "
        "and what was said first; the engine of hotswap goes through the same run. Made by "
        "`python benchmarks/upstream_defects.py --write`; without `--write` the script fails when a defect "
        "disappears or a new one shows.",
        "",
        "| deployment | law | times | first violation |",
        "|---|---|---|---|",
        *(f"| {row.name} | {row.law} | {row.count} | {row.text} |" for row in rows),
        "",
    ]
    if not any(row.name.startswith("hotswap") for row in rows):
        lines += ["hotswap's own engine breaks none.", ""]
    return "\n".join(
        [
            *lines,
            "## What was known",
            "",
            "| defect | reported as | shown by |",
            "|---|---|---|",
            *(
                f"| {text} | {link or 'nothing we found'} | "
                f"{'; '.join(f'{name}: {law}' for name, law in shown)} |"
                for text, link, shown in KNOWN
            ),
            "",
        ]
    )


def differences(before: str, now: str) -> list[str]:
    """What two pages disagree on: which law is broken by whom, and how often."""
    old, new = _counts(before), _counts(now)
    return [
        f"{name}: {law} was broken {old.get((name, law), 0)} times, and is {new.get((name, law), 0)} times"
        for name, law in sorted(old.keys() | new.keys())
        if old.get((name, law)) != new.get((name, law))
    ]


def _counts(text: str) -> dict[tuple[str, str], int]:
    found = re.findall(r"^\| ([^|]+) \| ([\w-]+) \| (\d+) \|", text, re.MULTILINE)
    return {(name, law): int(count) for name, law, count in found}


def unseen(rows: list[Row]) -> list[str]:
    """The known defects that no finding shows any more."""
    found = {(row.name, row.law) for row in rows}
    return [
        f"known, and not seen: {text}" for text, _, shown in KNOWN if not found.issuperset(shown)
    ]


def main(argv: list[str]) -> int:
    """Compare with the page or write it; 0 when they agree and every known defect is seen."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        rows = list(findings(Path(folder)))
    text, told = page(rows), unseen(rows)
    if "--write" in argv:
        PAGE.write_text(text, encoding="utf-8")
        print(f"{len(rows)} broken laws written to {PAGE}")
    else:
        told = [*differences(PAGE.read_text(encoding="utf-8"), text), *told]
    for line in told:
        print(f"{line}; look at it, and run with --write")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
