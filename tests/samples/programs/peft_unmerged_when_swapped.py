"""Unmerged for the swap, merged again."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model.merge_adapter()


def switch(path):
    model.unmerge_adapter()
    hotswap_adapter(model, path, adapter_name="default")
    model.merge_adapter()
