import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def without_hotswap():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.transformer.compile()
    pipe("x")
    pipe.set_adapters("x")  # want HSW291
    pipe("x")


def the_one_that_is_active():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.transformer.compile()
    pipe("x")
    pipe.set_adapters("x", 0.5)
    pipe("x")


def never_run():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.transformer.compile()
    pipe.set_adapters("y")
