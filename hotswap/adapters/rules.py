"""The rules of adapter files (HSW0xx, HSW1xx): what each reports, why, a bad and a good example."""

from __future__ import annotations

from hotswap.findings import RULES, WARNINGS

_RULES = {
    "HSW001": (
        "The adapter is not there: no folder, no file, no repository of that name.",
        "A server that skips a missing adapter answers with the base model.",
        "hotswap check adapters/typo",
        "hotswap check adapters/formal",
    ),
    "HSW002": (
        "The folder has no adapter_config.json.",
        "Rank alone does not give the scaling: without alpha the weights mean nothing.",
        "formal/adapter_model.safetensors alone",
        "formal/adapter_config.json beside it",
    ),
    "HSW003": (
        "The config is no JSON object, names a key twice, or has values that make no sense.",
        "Parsers disagree on such files, so two programs serve two adapters; patterns may take for ever.",
        '{"peft_type": "LORA", "r": 0}',
        '{"peft_type": "LORA", "r": 8, "lora_alpha": 16}',
    ),
    "HSW004": (
        "There are no LoRA weights.",
        "The adapter would be the base model.",
        "formal/adapter_config.json alone",
        "formal/adapter_model.safetensors beside it",
    ),
    "HSW005": (
        "The weights are no safetensors file: truncated, overlapping, with a hole, or with data outside.",
        "A half-copied file is loaded as other weights, or not at all, at the moment of the swap.",
        "a tensor with data_offsets [0, 4096] in a file with 100 bytes of data",
        "data_offsets that follow each other and end where the file ends",
    ),
    "HSW006": (
        "The weights are a pickle (adapter_model.bin), opened only with --allow-pickle, or no state dict.",
        "Loading a pickle can run code.",
        "formal/adapter_model.bin",
        "formal/adapter_model.safetensors",
    ),
    "HSW007": (
        "In the place of a file there is a pipe, a device, a socket or a folder.",
        "Reading it could wait for ever or never end.",
        "mkfifo formal/adapter_model.safetensors",
        "a regular file",
    ),
    "HSW008": (
        "A file of the adapter is a link to a file out of its folder (and not into the hub's cache).",
        "Who writes the folder chooses what is read; the file can change without the folder changing.",
        "formal/adapter_model.safetensors -> ../../other/weights.safetensors",
        "the file itself",
    ),
    "HSW009": (
        "A file changed while it was read.",
        "What was checked is not what will be loaded.",
        "training that writes into the folder that is served",
        "writing beside it, and renaming when it is complete",
    ),
    "HSW101": (
        "The adapter is not LoRA.",
        "Only LoRA can be padded to another rank without changing its meaning.",
        '"peft_type": "LOHA"',
        '"peft_type": "LORA"',
    ),
    "HSW102": (
        "The adapter has a feature that cannot be swapped.",
        "It changes the base weights, or Python code that is compiled in.",
        '"init_lora_weights": "corda"',
        '"init_lora_weights": true',
    ),
    "HSW103": (
        "Tensors of a module are missing: A without B, no magnitude of DoRA, part of a module to save.",
        "PEFT fills the gap with zeros, and the module does nothing; a head is half another one's.",
        "q_proj.lora_A.weight alone",
        "q_proj.lora_A.weight and q_proj.lora_B.weight",
    ),
    "HSW104": (
        "The rank in the weights is not the config's, or A and B are exchanged.",
        "The scaling is alpha / rank of the config: with another rank the adapter is too strong or too weak.",
        '"r": 8 with lora_A.weight of shape [16, 4096]',
        '"r": 16 with lora_A.weight of shape [16, 4096]',
    ),
    "HSW105": (
        "The rank is above what the plan has room for.",
        "A larger tensor means a recompile; swap() refuses.",
        "an adapter of rank 64 and a plan with rank 16",
        "a plan that includes the adapter, made before torch.compile",
    ),
    "HSW106": (
        "The adapter targets a module, a bias, a head or a token that the plan has no room for.",
        "There is no LoRA layer to copy it to, and adding one means a recompile.",
        "an adapter for k_proj and a plan with q_proj",
        "hotswap plan over both, then hotswap.load(base_model, plan)",
    ),
    "HSW107": (
        "The dimensions are those of another base model.",
        "The weights were trained for other features; padding would hide that.",
        "lora_A.weight of shape [8, 5120] for a model of 4096 features",
        "an adapter that was trained for this base model",
    ),
    "HSW108": (
        "There is a tensor that a swap does not know.",
        "Leaving it out would serve another adapter than the one that was trained.",
        "q_proj.lora_C.weight",
        "q_proj.lora_A.weight and q_proj.lora_B.weight",
    ),
    "HSW109": (
        "Weights are not floating numbers.",
        "Integers are the codes of a quantised adapter, not its values.",
        "q_proj.lora_A.weight of I8",
        "q_proj.lora_A.weight of BF16",
    ),
    "HSW110": (
        "A value is NaN or infinite (with --weights).",
        "One NaN makes every answer NaN.",
        "an adapter whose training diverged",
        "a checkpoint from before",
    ),
    "HSW111": (
        "A key of rank_pattern or alpha_pattern matches no module that has weights.",
        "The usual rank and alpha are used in silence.",
        '"alpha_pattern": {"q_porj": 32}',
        '"alpha_pattern": {"q_proj": 32}',
    ),
    "HSW112": (
        "The base model has no such module, or none that can carry LoRA (with --base).",
        "The adapter belongs to another model, or to another version of it.",
        "an adapter for transformer.h.0.attn.c_attn and a Llama",
        "an adapter for model.layers.0.self_attn.q_proj and a Llama",
    ),
    "HSW113": (
        "base_model_name_or_path is another one than that of the other adapters, or of --base.",
        "Of equal shape but with other weights: accepted, and wrong.",
        "one adapter of org/model-instruct among ten of org/model",
        "adapters of one base model",
    ),
    "HSW114": (
        "Names collide: two are equal, one is part of another, or one has 'lora' in it.",
        "PEFT's hot-swapping looks for names inside of names, and zeroes the other adapter.",
        "adapters/legal and adapters/legal2",
        "adapters/legal-1 and adapters/legal-2",
    ),
    "HSW115": (
        "Weights are in several dtypes, or in one that the plan's rounds.",
        "What is served is not bit for bit what was trained.",
        "lora_A of F32 and lora_B of BF16",
        "both of F32",
    ),
    "HSW116": (
        "Two adapters have the same config and the same bytes.",
        "They take memory and swaps twice; it is often a copy that should have been another adapter.",
        "cp -r adapters/legal adapters/poetic",
        "one folder for each adapter",
    ),
    "HSW117": (
        "Every B is zero (with --weights).",
        "The adapter does nothing: it was saved before it was trained.",
        "get_peft_model(...).save_pretrained(folder)",
        "saving after training",
    ),
    "HSW118": (
        "The config and the weights do not name the same modules.",
        "PEFT leaves weights out that the config does not name, and so does a swap.",
        '"target_modules": ["q_proj"] with weights for v_proj',
        '"target_modules": ["q_proj", "v_proj"]',
    ),
    "HSW119": (
        "The config has a field that this PEFT does not know.",
        "PEFT passes over it with a warning: what it asked for is not done.",
        '"use_dorra": true',
        '"use_dora": true',
    ),
    "HSW120": (
        "The names of modules are those of the base model without its head, or with one (with --base alone).",
        "A swap into a model of the config's own class refuses it; into that of the other class it does not.",
        "an adapter for layers.0.self_attn.q_proj and a LlamaForCausalLM",
        "an adapter for model.layers.0.self_attn.q_proj and a LlamaForCausalLM",
    ),
}
"""Code → what the rule reports in a sentence, why that matters, an example of bad and one of good."""
DOCUMENTATION: dict[str, str] = {
    code: f"{what}\n\n{why}\n\nBad:\n    {bad}\n\nGood:\n    {good}"
    for code, (what, why, bad, good) in _RULES.items()
}
"""Code → the rule's page: what it reports, why it matters, and an example of bad and good."""


def table() -> str:
    """Return the rules as a Markdown table, for the documentation."""
    rows = [
        "| code | name | what it reports | why it matters | severity |",
        "|---|---|---|---|---|",
    ]
    for code, (what, why, *_) in _RULES.items():
        severity = "warning" if code in WARNINGS else "error"
        rows.append(f"| {code} | {RULES[code]} | {what} | {why} | {severity} |")
    return "\n".join(rows)
