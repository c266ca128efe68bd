import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def after_a_run():
    pipe = pipeline()
    pipe.transformer = torch.compile(pipe.transformer)
    pipe("x")
    pipe.load_lora_weights("a", adapter_name="a")  # want HSW206
    pipe("x")


def by_intent():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.transformer.compile()
    pipe.load_lora_weights("b", adapter_name="b")  # want HSW206


def in_peft(inputs):
    model = torch.compile(loaded())
    model(inputs)
    model.load_adapter("b", adapter_name="b")  # want HSW206
    model(inputs)


def in_a_loop(paths):
    pipe = pipeline()
    pipe.transformer.compile()
    for path in paths:
        pipe.load_lora_weights(path)  # want HSW206
        pipe("x")
        pipe.unload_lora_weights()


def nothing_ran():
    pipe = pipeline()
    pipe.transformer = torch.compile(pipe.transformer)
    pipe.load_lora_weights("a", adapter_name="a")
    pipe("x")


def compiled_anew():
    pipe = pipeline()
    pipe.transformer.compile()
    pipe("x")
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.transformer.compile()
    pipe("x")


def reset():
    pipe = pipeline()
    pipe.transformer.compile()
    pipe("x")
    torch._dynamo.reset()
    pipe.load_lora_weights("a", adapter_name="a")
    pipe("x")


def fused_and_unloaded():
    pipe = pipeline()
    pipe.transformer.compile()
    pipe("x")
    pipe.load_lora_weights("a")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe("x")


def another_component():
    pipe = pipeline()
    pipe.text_encoder = torch.compile(pipe.text_encoder)
    pipe("x")
    pipe.load_lora_weights("a", adapter_name="a")
    pipe("x")


def swapped():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.transformer.compile()
    pipe("x")
    pipe.load_lora_weights("b", adapter_name="a", hotswap=True)
    pipe("x")


def copied_by_peft(inputs):
    model = torch.compile(loaded())
    model(inputs)
    model.load_adapter("b", adapter_name="default")
    model(inputs)
