import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def in_a_pipeline():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.enable_lora_hotswap(target_rank=8)  # want HSW203


def in_a_component():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.transformer.enable_lora_hotswap(target_rank=8)  # want HSW203


def of_a_caller(pipe):
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.enable_lora_hotswap(target_rank=8)  # want HSW203


def in_transformers():
    model = AutoModelForCausalLM.from_pretrained("base")
    model.add_adapter(LoraConfig(r=4))
    model.enable_peft_hotswap(target_rank=8)  # want HSW203


def before_the_load():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")


def after_unloading():
    pipe = pipeline()
    pipe.load_lora_weights("a")
    pipe.unload_lora_weights()
    pipe.enable_lora_hotswap(target_rank=8)


def of_another_pipeline():
    first, second = pipeline(), pipeline()
    first.load_lora_weights("a")
    second.enable_lora_hotswap(target_rank=8)


def opted_out():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.enable_lora_hotswap(target_rank=8, check_compiled="ignore")
