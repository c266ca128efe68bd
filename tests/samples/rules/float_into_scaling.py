import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def prepared():
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    return torch.compile(model)


def a_number():
    for module in prepared().modules():
        module.scaling["default"] = 0.5  # want HSW210


def alpha_over_rank():
    for _, module in prepared().named_modules():
        if hasattr(module, "scaling"):
            module.scaling["default"] = module.lora_alpha["default"] / module.r["default"]  # want HSW210


def by_set_scale(strength):
    for module in prepared().modules():
        module.set_scale("default", strength)  # want HSW210


def by_unscale():
    for module in prepared().modules():
        module.unscale_layer(2.0)  # want HSW210


def by_set_adapters():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.transformer.compile()
    pipe.set_adapters(["x"], [0.5])  # want HSW210


def before_compiling():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.set_adapters("x")  # want HSW210
    pipe.transformer.compile()


def a_tensor(strength):
    for module in prepared().modules():
        module.scaling["default"] = torch.tensor(strength)
        module.scaling["default"].fill_(0.5)
        module.scaling["default"] *= 0.5
        module.scale_layer(0.5)


def not_prepared():
    model = torch.compile(loaded())
    for module in model.modules():
        module.scaling["default"] = 0.5


def never_compiled():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.set_adapters("x", 0.5)
    pipe("x")


def of_the_adapter_that_is_prepared():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.set_adapters(["x", "y"], [0.5, 0.5])  # want HSW210
    pipe.transformer.compile()


def of_the_adapter_that_is_not_prepared():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.set_adapters("y", 0.5)
    pipe.transformer.compile()
