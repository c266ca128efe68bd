import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def in_peft():
    model = loaded()
    model.merge_adapter()
    hotswap_adapter(model, "b", adapter_name="default")  # want HSW211


def in_diffusers():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.fuse_lora()
    pipe.load_lora_weights("b", adapter_name="x", hotswap=True)  # want HSW211


def unmerged():
    model = loaded()
    model.merge_adapter()
    model.unmerge_adapter()
    hotswap_adapter(model, "b", adapter_name="default")


def unfused():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.load_lora_weights("b", adapter_name="x", hotswap=True)


def merged_on_one_path(flag):
    model = loaded()
    if flag:
        model.merge_adapter()
    else:
        hotswap_adapter(model, "b", adapter_name="default")


def fused_unloaded_and_loaded():
    pipe = pipeline()
    pipe.load_lora_weights("speed")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="x", hotswap=True)
