"""docs/supported.md: every LoRA layer and variant of PEFT, and every feature, is swapped or refused.

``python -m tests.engine.test_supported`` writes the page anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import peft.tuners.lora
import pytest

pytest.importorskip("diffusers")

from hotswap.adapters.config import unsupported_features
from hotswap.engine.preparable import SUPPORTED_VARIANTS
from tests.support.trainer_files import FORMATS as TRAINERS

PAGE = Path(__file__).parents[2] / "docs" / "supported.md"
TESTS = Path(__file__).parents[1]
PEFT = Path(peft.tuners.lora.__file__).parent
CLASS = re.compile(r"^ *class (\w+)\(.*?(?:LoraLayer|LoraVariant|Variant|Linear|_ConvNd)\):", re.M)

SAME = "as Linear: its lora_A and lora_B are plain linear layers; not measured here"
LAYERS = {
    "Linear": "swapped; over nn.Linear and transformers' Conv1D",
    "Embedding": "swapped; with padding_idx and max_norm",
    "Conv1d": "swapped; with groups, stride, dilation and padding modes as far as PEFT computes them",
    "Conv2d": "swapped; the same",
    "Conv3d": "swapped; the same",
    "MultiheadAttention": "swapped, in_proj and out_proj; PEFT's own forward breaks the graph",
    "ParamWrapper": "swapped; 2D and 3D, nested, experts. Compiled, PEFT's layer recompiles at every call "
    "even without a swap, and adapters of one model must target the same parameters",
    "TorchaoLoraLinear": "swapped; int8",
    "Linear8bitLt": "swapped; with DoRA, PEFT's own second forward fails on a CPU",
    "Linear4bit": "swapped; DoRA is refused on a CPU with AVX512-BF16, for which the weight is packed: "
    "PEFT misreads it",
    "HqqLoraLinear": "swapped",
    "GPTQLoraLinear": "swapped; PEFT has no DoRA for it",
    "AwqLoraLinear": "swapped; PEFT has no DoRA for it",
    **dict.fromkeys(
        (
            "AqlmLoraLinear",
            "EetqLoraLinear",
            "IncLoraLinear",
            "TeLinear",
        ),
        SAME,
    ),
    "LoraParallelLinear": "refused by prepare(): its LoRA weights are in Megatron's parallel layers",
}
INTERNAL = {"_ConvNd", "_DoraConvNdVariant"}

FEATURES = {
    "r, lora_alpha, use_rslora": "swapped; up to the prepared rank",
    "rank_pattern, alpha_pattern": "swapped",
    "target_modules, exclude_modules, layers_to_transform": "swapped; other targets with "
    "hotswap.load(base_model, plan), which puts LoRA layers over all of them",
    "target_parameters": "swapped; also a part of the parameters that others target, with ranks of their own",
    "lora_dropout": "swapped; at inference it is nothing",
    "lora_bias": "swapped, also in fleets that mix it; merging one in a layer prepared for DoRA is refused",
    "use_dora": "swapped, also in fleets that mix it",
    "modules_to_save": "swapped; an adapter without gives the base model's module. "
    "Heads that PEFT adds by task type, too",
    "ensure_weight_tying": "swapped, trained or with LoRA; adapters of one model must agree on it",
    "trainable_token_indices": "swapped; an adapter without gives the base model's rows",
    "base weights in the file (save_embedding_layers)": "accepted where they equal the model's, "
    "else refused: a swap never writes base weights",
    "init_lora_weights: true, false, gaussian, orthogonal, eva, mica": "swapped; the start of training",
    "alora_invocation_tokens": "planned, checked, loaded and swapped where all adapters have the same "
    "tokens; beside others refused",
    "init_lora_weights: pissa, olora": "the same where all have the same ranks and scalings, which leave "
    "the same base weights",
}

REFUSED = [
    {"bias": "all"},
    {"bias": "lora_only"},
    {"use_qalora": True},
    {"use_bdlora": {"nblocks": 2}},
    {"arrow_config": {"top_k": 1}},
    {"kasa_config": {"beta": 1.0}},
    {"monteclora_config": {"num_samples": 2}},
    {"velora_config": {"num_groups": 2}},
    {"layer_replication": [[0, 2]]},
    *({"init_lora_weights": value} for value in ("pissa_niter_4", "corda", "loftq", "lora_ga")),
]


WAYS = "plan, check, load, swap"
PROVEN = "engine/test_format_property.py::test_each_format_is_accepted_and_its_damages_are_not"
FOUND = "engine/test_formats.py::test_names_of_a_family_are_found_without_being_told"
PICKLES = "engine/test_reading.py::test_a_file_of_torch_save_is_taken_where_that_is_allowed"
REFUSED_FILES = "adapters/test_refused.py::test_"
FILES = {
    "PEFT's folder": (
        WAYS,
        "checks/test_base_model.py::test_the_checker_accepts_what_a_swap_accepts",
    ),
    "with module names of transformers 4": (
        WAYS,
        "engine/test_renamed.py::test_old_names_are_prepared_loaded_swapped_and_checked",
    ),
    "with heads of PEFT up to 0.10": (
        WAYS,
        "engine/test_heads.py::test_a_head_that_the_config_does_not_name_is_swapped",
    ),
    **dict.fromkeys(TRAINERS, (WAYS, PROVEN)),
    "Krea 2, Anima, Ideogram 4, Flux 3, MiniMax-H3, LTX-2, HiDream, Lumina 2": (
        "plan, check; their values were not compared",
        FOUND,
    ),
    "files of torch.save (.bin)": (f"{WAYS}, where pickles are allowed", PICKLES),
    "PEFT's folder with names of which PEFT loads nothing (without base_model.model., of compiled modules)": (
        "refused (HSW108)",
        "engine/test_named_modules.py::test_names_of_which_peft_loads_nothing_are_refused",
    ),
    "diffusers with metadata that a fresh load refuses (of some components, beside alphas)": (
        "refused (HSW003)",
        "engine/test_formats.py::test_metadata_that_diffusers_refuses_is_refused",
    ),
    "diffusers with magnitudes of DoRA that a text encoder loses in a fresh load": (
        "refused (HSW108)",
        "engine/test_format_property.py::test_magnitudes_of_a_text_encoder_that_a_fresh_load_loses_are_refused",
    ),
    "Flux in diffusers' names with lora_down, lora_up and alphas, which diffusers leaves out": (
        "refused (HSW005)",
        "engine/test_formats.py::test_alphas_that_diffusers_leaves_out_are_refused",
    ),
    "PEFT's file without its config": (
        "refused (HSW002)",
        "engine/test_formats.py::test_a_file_of_peft_without_its_config_is_refused_in_every_way_in",
    ),
    "names that diffusers does not read (lycoris_, SD3 of kohya, original names without a prefix)": (
        "refused (HSW005)",
        "engine/test_formats.py::test_names_that_diffusers_does_not_read_are_refused",
    ),
    "LoHa, LoKr, OFT, IA3, mlx-lm, torchtune, Megatron, whole models": (
        "refused by name (HSW101)",
        f"{REFUSED_FILES}a_method_or_program_of_another_kind_is_named",
    ),
    "Git LFS pointers, HTML pages, gguf, pickles that are not allowed": (
        "refused by name (HSW005, HSW006)",
        f"{REFUSED_FILES}a_file_of_another_kind_is_named",
    ),
}
"""Format of a file → who reads it, and the test that shows it."""


def page() -> str:
    """The whole page."""
    lines = [
        "# What is swapped, and what is refused",
        "",
        "Nothing is skipped in silence: a layer or a feature is swapped, or refused by name before",
        "anything changes. Written by `python -m tests.engine.test_supported`; a test holds it true.",
        "",
        "## Layers",
        "",
        "| PEFT's class | |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in LAYERS.items()),
        "",
        "## Files",
        "",
        "All ways in have one reader; files that are not in PEFT's names go through diffusers' or PEFT's own",
        "converters. The tests compare what a swap puts in place with a fresh load of PEFT or diffusers.",
        "",
        "| format | read by | shown by |",
        "|---|---|---|",
        *(f"| {name} | {ways} | `tests/{proof}` |" for name, (ways, proof) in FILES.items()),
        "",
        "## Features of an adapter",
        "",
        "| in adapter_config.json | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in FEATURES.items()),
        "",
        "## Refused",
        "",
        "| in adapter_config.json | reason |",
        "|---|---|",
    ]
    for config in REFUSED:
        (sentence,) = unsupported_features(config)
        feature, _, reason = sentence.partition(": ")
        lines.append(f"| `{feature}` | {reason} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", FILES)
def test_what_shows_that_a_format_is_read_exists(name: str) -> None:
    file, _, test = FILES[name][1].partition("::")
    assert f"\ndef {test}(" in (TESTS / file).read_text("utf-8")


def peft_classes() -> set[str]:
    return {
        n for path in PEFT.glob("*.py") for n in CLASS.findall(path.read_text("utf-8"))
    } - INTERNAL


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python -m tests.engine.test_supported"


def test_every_lora_layer_and_variant_of_peft_is_in_the_page() -> None:
    text = page()
    missing = {
        name
        for name in peft_classes()
        if not name.startswith(SUPPORTED_VARIANTS) and name not in text
    }
    assert missing == set()
    assert {
        "Linear",
        "TorchaoLoraLinear",
        "ALoraLinearVariant",
        "DoraConv2dVariant",
    } <= peft_classes()


@pytest.mark.parametrize("config", REFUSED, ids=str)
def test_each_refusal_names_pefts_class(config: dict[str, object]) -> None:
    (sentence,) = unsupported_features(config)
    (name,) = re.findall(r"PEFT's (\w+)", sentence)
    assert name in peft_classes() | {"LoraModel", "LoraLayer"}


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
