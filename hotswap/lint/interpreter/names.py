"""Qualified names: what a name stands for, and which functions of others leave models alone."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

_KNOWN = {
    "AutoPeftModel": "peft.AutoPeftModel",
    "LoraConfig": "peft.LoraConfig",
    "PeftModel": "peft.PeftModel",
    "get_peft_model": "peft.get_peft_model",
    "hotswap_adapter": "peft.utils.hotswap.hotswap_adapter",
    "hotswap_adapter_from_state_dict": "peft.utils.hotswap.hotswap_adapter_from_state_dict",
    "inject_adapter_in_model": "peft.inject_adapter_in_model",
    "peft": "peft",
    "prepare_model_for_compiled_hotswap": "peft.utils.hotswap.prepare_model_for_compiled_hotswap",
    "torch": "torch",
}
"""Names that mean one thing even in a snippet that leaves out the import."""

UNMISTAKABLE = re.compile(
    r"^(Auto)?PeftModel|Pipeline$|^AutoPipelineFor|^AutoModelFor|^UNet2D\w*Model$|Transformer2DModel$"
)
"""Names of classes that make models, wherever they are imported from."""
FACTORIES = frozenset({"from_config", "from_pipe", "from_pretrained", "from_single_file"})
"""Methods of classes of models that make one."""
MUTATES = frozenset(
    {
        "append", "clear", "extend", "insert", "pop", "remove", "reverse", "setdefault", "sort", "update",
    }
)  # fmt: skip
"""Methods that change a container in place."""
PUTS = frozenset({"add", "append", "appendleft", "put", "put_nowait", "send", "set"})
TAKES = frozenset({"get", "get_nowait", "pop", "popleft", "receive", "recv"})
"""Methods that put something into a container of unknown content, or take it out."""
CALLS_ITS_ARGUMENT = {
    "cpu_bound": 0,
    "io_bound": 0,
    "run_in_executor": 1,
    "run_in_threadpool": 0,
    "run_sync": 0,
    "submit": 0,
    "to_thread": 0,
}
"""Functions that call a function they are given, and which of their arguments that is."""
HARMLESS = frozenset(
    {
        *dir(builtins), "accelerate", "argparse", "bitsandbytes", "collections", "copy", "datasets",
        "diffusers", "gc", "gradio", "itertools", "json", "logging", "matplotlib", "numpy", "os", "optimum",
        "pathlib", "peft", "PIL", "pprint", "random", "re", "safetensors", "spaces", "streamlit", "sys",
        "tempfile", "time", "torch", "torchao", "torchinfo", "tqdm", "transformers", "warnings",
        "weakref",
    }
)  # fmt: skip
"""Packages whose functions do not load, prepare or compile the models they are given."""

OBSERVES = re.compile(
    r"^_*(?:bench|calc|check|comput|count|debug|decode|display|encode|eval|export|format|generat|info|infer|is_|"
    r"len|log|measur|plot|predict|print|profil|quantiz|render|run|sample|save|show|summar|test|time|warm|warn|write)"
)
"""Names of functions that use a model without loading, preparing or compiling it."""

ANOTHER = re.compile(
    r"^_*(?:build|clone|convert|copy|create|deepcopy|dequantiz|export|extract|find|fresh|from|get|init|load|make|"
    r"merge|new|open|pick|re(?!cord|gister|nder)|script|select|strip|swap|trace|un|use)"
)
"""Names of functions that give another model than the one that they are given, or may."""


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """Yield each name that an import binds, with what it stands for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.split(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (top, top)
    else:
        base = "." * node.level + (node.module or "")
        for alias in node.names:
            yield alias.asname or alias.name, f"{base}.{alias.name}"


def unimported(name: str) -> str | None:
    """Return the qualified name of a name that was never bound, where there is no doubt about it."""
    if name in _KNOWN:
        return _KNOWN[name]
    if UNMISTAKABLE.search(name) or hasattr(builtins, name) or name in ("exit", "quit"):
        return name
    return None
