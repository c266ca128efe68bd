"""Qualified names: what an imported name stands for, and what a class makes."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

from hotswap.lint.interpreter.typestate import Kind

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

_MODEL = re.compile(r"^Auto\w*Model|For[A-Z]\w*$|LMHeadModel$|Model$")
_COMPONENT = re.compile(r"UNet|Transformer")
_UNMISTAKABLE = re.compile(
    r"^(Auto)?PeftModel|Pipeline$|^AutoPipelineFor|^AutoModelFor|^UNet2D\w*Model$|Transformer2DModel$"
)
HARMLESS = frozenset(
    {
        *dir(builtins), "accelerate", "bitsandbytes", "collections", "copy", "datasets", "diffusers",
        "gc", "gradio", "itertools", "json", "logging", "matplotlib", "numpy", "os", "optimum",
        "pathlib", "peft", "PIL", "pprint", "random", "re", "safetensors", "streamlit", "sys",
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
    if _UNMISTAKABLE.search(name) or hasattr(builtins, name):
        return name
    return None


def made_by(name: str) -> Kind | None:
    """Say what kind of model the class of that qualified name makes; None for anything else."""
    root, last = name.split(".")[0], name.rsplit(".", 1)[-1]
    if last.startswith(("PeftModel", "AutoPeftModel", "PeftMixedModel")):
        return "peft"
    if root == "torch":
        return "module" if ".nn." in name and last[:1].isupper() else None
    if root != "transformers" and (last.endswith("Pipeline") or last.startswith("AutoPipeline")):
        return "pipeline"
    if root == "diffusers" or _UNMISTAKABLE.search(last):
        if _COMPONENT.search(last):
            return "component"
        if root == "diffusers":
            return "module" if last.endswith("Model") or last.startswith("Autoencoder") else None
    if root in ("transformers", last) and _MODEL.search(last):
        return "transformers"
    return None
