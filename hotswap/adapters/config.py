"""adapter_config.json: rank, alpha and scaling per module, and features that are not swapped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from hotswap.adapters.files import (
    open_regular,
    other_weights,
    parse_json,
    refuse_others,
    unreadable,
)
from hotswap.adapters.patterns import matches, pattern_problem
from hotswap.adapters.targets import naming, target_problem
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

CONFIG = "adapter_config.json"
MAX_CONFIG = 10_000_000  # bytes
SAVE_AGAIN = "save the adapter again with model.save_pretrained(folder)"

_UNSUPPORTED = {
    "layer_replication": "PEFT's LoraModel repeats layers of the base model",
    "alora_invocation_tokens": "PEFT's ALoraLinearVariant starts at invocation tokens of its own",
    "use_qalora": "PEFT's QALoraLinearVariant pools the input of lora_A by a constant group size",
    "use_bdlora": "PEFT's BdLoraLinearVariant holds block-diagonal factors in layers of its own",
    "arrow_config": "PEFT's ArrowLinearVariant routes by prototypes made from several adapters",
    "kasa_config": "PEFT's KasaLinearVariant truncates the base weights",
    "monteclora_config": "PEFT's MontecloraLinearVariant adds a sampler to every layer",
    "velora_config": "PEFT's VeloraLinearVariant projects the layers' activations",
}
_FIELDS = """
alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path
bias corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out
inference_mode init_lora_weights kasa_config layer_replication layers_pattern
layers_to_transform loftq_config lora_alpha lora_bias lora_dropout lora_ga_config
megatron_config megatron_core modules_to_save monteclora_config peft_type peft_version
qalora_group_size r rank_pattern revision runtime_config target_modules target_parameters
task_type trainable_token_indices use_bdlora use_dora use_qalora use_rslora velora_config
"""
FIELDS = frozenset(_FIELDS.split())
"""What PEFT's LoraConfig knows; it passes over anything else, with a warning."""
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Task type → modules that PEFT's model of the task trains as a whole."""
_INITS = ("gaussian", "orthogonal", "eva", "mica")
"""Ways to begin that leave the base weights alone."""
_EXACT = ("pissa", "olora")
"""Ways to begin of which the same ranks and scalings leave the same base weights."""
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read and check the config file; raises UnreadableAdapterError (HSW001/002/003/101)."""
    return lora_config(Path(folder, CONFIG), config_text(Path(folder)))


def config_text(folder: Path) -> bytes:
    """Read the config file of a folder; raises UnreadableAdapterError (HSW001/002/003/007)."""
    path = os.path.join(folder, CONFIG)
    if not os.path.isdir(folder):
        if folder.is_file():
            with open_regular(folder) as file:
                refuse_others(folder, file.read(8))
        what = "is a file" if folder.exists() else "does not exist"
        remedy = f"pass a folder with {CONFIG}"
        raise unreadable(folder, "HSW001", f"the adapter folder {what}", remedy)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(min(size, MAX_CONFIG) + 1)
    except FileNotFoundError:
        remedy = "pass a folder that PEFT saved"
        if others := other_weights(folder):
            remedy = f"pass the file: {folder / others[0]}"
        elif _holds_adapters(folder):
            remedy = f"pass '{folder}/*'"
        raise unreadable(folder, "HSW002", f"no {CONFIG} in the folder", remedy) from None
    except OSError as error:
        text = f"cannot be read: {error.strerror or error}"
        raise unreadable(path, "HSW003", text, SAVE_AGAIN) from error


def _holds_adapters(folder: Path) -> bool:
    """Whether one of the first entries of a folder is an adapter."""
    try:
        with os.scandir(folder) as entries:
            return any(os.path.isfile(os.path.join(e.path, CONFIG)) for e in islice(entries, 100))
    except OSError:
        return False


def lora_config(where: str | Path, text: str | bytes) -> dict[str, Any]:
    """Parse a config's text and check it; raises UnreadableAdapterError (HSW003/101)."""
    config = parse_config(where, text)
    check_config(where, config)
    return config


def parse_config(where: str | Path, text: str | bytes) -> dict[str, Any]:
    """Parse a config's text; raises UnreadableAdapterError (HSW003) unless it is one JSON object."""
    if len(text) > MAX_CONFIG:
        raise unreadable(where, "HSW003", f"has more than {MAX_CONFIG} bytes", SAVE_AGAIN)
    try:
        config = parse_json(text)
    except ValueError as error:
        start = text[:8].encode() if isinstance(text, str) else text[:8]
        refuse_others(where, start, pickles=False)
        raise unreadable(where, "HSW003", f"is not valid JSON: {error}", SAVE_AGAIN) from error
    if not isinstance(config, dict):
        text = f"holds a {type(config).__name__}, expected a JSON object"
        raise unreadable(where, "HSW003", text, SAVE_AGAIN)
    return config


def check_config(where: str | Path, config: Mapping[str, Any]) -> None:
    """Raise UnreadableAdapterError unless rank, alpha and patterns make sense (HSW003/101)."""
    kind = config.get("peft_type")
    if kind != "LORA":
        if config.get("fine_tune_type") is not None:
            text = "is a config of mlx-lm, whose A and B are transposed"
            remedy = "convert it to PEFT's format: transpose both, lora_alpha is scale * rank"
            raise unreadable(where, "HSW101", text, remedy)
        found = f"peft_type is {ascii(kind)[:60]}" if kind else "peft_type is missing"
        text = f"{found}, expected 'LORA'"
        raise unreadable(where, "HSW101", text, "only LoRA adapters are swapped")
    problems = [Finding(str(where), "HSW003", text, SAVE_AGAIN) for text in _problems(config)]
    if problems:
        raise UnreadableAdapterError(problems)


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that the config gives a module: the first matching rank_pattern, else ``r``."""
    return int(_first_match(config.get("rank_pattern"), module, config.get("r", 8)))


def alpha_of(config: Mapping[str, Any], module: str) -> float:
    """The alpha that the config gives a module: the first alpha_pattern, else lora_alpha."""
    return float(_first_match(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))


def _first_match(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    # as PEFT's get_pattern_key (peft/utils/other.py), which takes the first match
    found = (value for key, value in (patterns or {}).items() if matches(key, module))
    return next(found, default)


def scaling_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor of ``B @ A``: alpha / rank, with rsLoRA alpha / sqrt(rank) (arXiv:2312.03732)."""
    return alpha_of(config, module) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def whole_modules(config: Mapping[str, Any]) -> list[str]:
    """The whole modules that the adapter carries: modules_to_save, and the heads that PEFT adds for a task.

    PEFT up to 0.10 saved such a head without naming it.
    """
    heads = _HEADS.get(str(config.get("task_type")), ())
    return [*map(str, config.get("modules_to_save") or ()), *heads]


def saved_module(config: Mapping[str, Any], tensor: str) -> bool:
    """Tell whether a tensor belongs to a whole module that the adapter carries (modules_to_save).

    As PEFT does (``_set_trainable`` in peft/utils/other.py), a module whose path ends with an entry counts.
    """
    entries = tuple(whole_modules(config))
    paths = [*accumulate(tensor.split(".")[:-1], "{}.{}".format)] if entries else []
    return any(path.endswith(entries) for path in paths)


def token_indices(config: Mapping[str, Any], module: str) -> tuple[int, ...]:
    """The rows of an embedding that the adapter trains (trainable_token_indices)."""
    given = config.get("trainable_token_indices") or ()
    if isinstance(given, Mapping):
        given = next((rows for key, rows in given.items() if module.endswith(str(key))), ())
    return tuple(int(row) for row in given)


def target_parameters(config: Mapping[str, Any], module: str) -> tuple[str, ...]:
    """Name the parameters of a module that the adapter targets directly (target_parameters), sorted.

    A module that target_modules names is none of these, as PEFT wraps it first.
    """
    if config.get("target_parameters") and config.get("target_modules") and naming(config)(module):
        return ()
    entries = [str(entry).rpartition(".") for entry in config.get("target_parameters") or ()]
    ours = {name for parent, _, name in entries if f".{module}".endswith(parent and f".{parent}")}
    return tuple(sorted(ours))


def unsupported_features(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the features of an adapter that cannot be swapped, one sentence each."""
    found = [f"{key}: {reason}" for key, reason in _UNSUPPORTED.items() if config.get(key)]
    bias = config.get("bias") or "none"
    if bias != "none":
        text = "PEFT's LoraModel trains biases of the base model itself"
        found.append(f"bias={_brief(bias)}: {text}")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _INITS:
        known = next((name for name in _BASE_CHANGING if init.lower().startswith(name)), None)
        text = "is not one of PEFT's that leave the base weights alone"
        if known is not None:
            text = f"PEFT's LoraLayer.{known}_init changes the base weights"
        found.append(f"init_lora_weights={_brief(init)}: {text}")
    return tuple(found)


def ground_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The features that adapters may have which are swapped for one another, if all have them alike.

    Those are the invocation tokens of aLoRA, and what PiSSA and OLoRA take out of the base weights. PiSSA
    by a number of iterations draws, so it takes out another part every time.
    """
    found: dict[str, Any] = {}
    if tokens := config.get("alora_invocation_tokens"):
        found["alora_invocation_tokens"] = tokens
    if config.get("init_lora_weights") in _EXACT:
        found["init_lora_weights"] = config["init_lora_weights"]
    return found


def remedy_for(feature: str) -> str:
    """What to do about one of the features that cannot be swapped."""
    if feature.endswith("_init changes the base weights") and "loftq" not in feature:
        return (
            "save the adapter as plain LoRA: "
            "save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
        )
    return "train or merge the adapter without this feature"


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    for name in ("modules_to_save", "target_parameters"):
        if config.get(name) and not isinstance(config[name], list | tuple | set):
            yield f"{name} is {_brief(config[name])}, expected a list of names"
    tokens = config.get("trainable_token_indices")
    if not all(map(_is_tokens, tokens.values() if isinstance(tokens, dict) else [tokens or []])):
        expected = "a list of token ids, or an object of module name to such a list"
        yield f"trainable_token_indices is {_brief(tokens)}, expected {expected}"
    if not _is_rank(config.get("r", 8)):
        yield f"r is {_brief(config.get('r'))}, expected a positive integer"
    if not _is_number(config.get("lora_alpha", 8)):
        yield f"lora_alpha is {_brief(config.get('lora_alpha'))}, expected a finite number"
    task = config.get("task_type")
    if task is not None and task not in _TASKS:
        yield f"task_type is {_brief(task)}, expected one of {', '.join(_TASKS)}"
    init = config.get("init_lora_weights")
    if init and not isinstance(init, bool | str):
        yield f"init_lora_weights is {_brief(init)}, expected true, false or a name"
    if config.get("use_dora") and config.get("lora_bias"):
        yield "use_dora and lora_bias are both set, and PEFT does not take both"
    problem = target_problem(config)
    if problem:
        yield problem
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name)
        if isinstance(patterns, dict):
            yield from _pattern_problems(name, patterns)
        elif patterns is not None:
            yield f"{name} is {_brief(patterns)}, expected an object of module pattern to number"


def _pattern_problems(name: str, patterns: Mapping[str, Any]) -> Iterator[str]:
    for key, value in patterns.items():
        if name == "rank_pattern" and not _is_rank(value):
            yield f"{name}[{_brief(key)}] is {_brief(value)}, expected a positive integer"
        elif not _is_number(value):
            yield f"{name}[{_brief(key)}] is {_brief(value)}, expected a finite number"
        problem = pattern_problem(key)
        if problem:
            yield f"{name}[{_brief(key)}] {problem}"


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(r) is int and r >= 0 for r in value)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # neither infinite nor NaN, and an int that a float can hold


def _brief(value: Any) -> str:
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."
