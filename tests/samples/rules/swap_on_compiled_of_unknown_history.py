import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def of_a_caller(pipe):
    pipe.transformer.compile()
    pipe.load_lora_weights("b", adapter_name="x", hotswap=True)  # want HSW292


def prepared_here(pipe):
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.transformer.compile()
    pipe.load_lora_weights("b", adapter_name="x", hotswap=True)
