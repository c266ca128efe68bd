import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def in_diffusers():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x", hotswap=True)  # want HSW209


def first_turn(paths):
    pipe = pipeline()
    for path in paths:
        pipe.load_lora_weights(path, adapter_name="x", hotswap=True)  # want HSW209


def in_transformers():
    model = AutoModelForCausalLM.from_pretrained("base")
    model.load_adapter("a", adapter_name="x", hotswap=True)  # want HSW209


def later_turns(paths):
    pipe = pipeline()
    first = True
    for path in paths:
        pipe.load_lora_weights(path, adapter_name="x", hotswap=not first)
        first = False


def of_a_caller(pipe):
    pipe.load_lora_weights("a", adapter_name="x", hotswap=True)


def if_loaded(paths):
    pipe = pipeline()
    done = []
    for path in paths:
        pipe.load_lora_weights(path, adapter_name="x", hotswap=len(done) > 0)
        done.append(path)
