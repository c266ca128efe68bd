import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def the_same_name():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.load_lora_weights("b", adapter_name="a")  # want HSW216


def of_a_compiled_model():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.transformer.compile()
    pipe("x")
    pipe.load_lora_weights("b", adapter_name="a")  # want HSW216


def the_second_turn(paths):
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    for path in paths:
        pipe.load_lora_weights(path, adapter_name="a")  # want HSW216


def unloaded_before():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.unload_lora_weights()
    pipe.load_lora_weights("b", adapter_name="a")


def deleted_before():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.delete_adapters(["a"])
    pipe.load_lora_weights("b", adapter_name="a")


def unloaded_on_another_path(flag):
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="a")
    if flag:
        pipe.unload_lora_weights()
    pipe.load_lora_weights("b", adapter_name="a")


def by_itself(inputs):
    model = AutoModelForCausalLM.from_pretrained("base")
    model.enable_peft_hotswap(target_rank=8)
    model.load_adapter("a", adapter_name="a")
    model.load_adapter("b", adapter_name="a")
