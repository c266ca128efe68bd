import hotswap
import torch
from diffusers import FluxPipeline
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from torch._inductor import aoti_compile_and_package
from torch.export import export
from transformers import AutoModelForCausalLM


def loaded():
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a").eval()


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


def inlined(args):
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=64)
    program = torch.export.export(model, args)
    torch._inductor.aoti_compile_and_package(program, package_path="model.pt2")  # want HSW217


def not_prepared(args):
    program = export(loaded(), args)
    options = {"always_keep_tensor_constants": True}
    aoti_compile_and_package(program, inductor_configs=options)  # want HSW217


def saved(args):
    program = torch.export.export(loaded(), args)
    torch.export.save(program, "model.pt2")  # want HSW217


def saved_pipeline(args):
    pipe = FluxPipeline.from_pretrained("base")
    pipe.load_lora_weights("a", adapter_name="style")
    torch.export.save(export(pipe.transformer, args), "model.pt2")  # want HSW217


def around(args):
    model = loaded()
    hotswap.prepare(model, target_rank=64)
    program = export(Logits(model).eval(), args).run_decompositions()
    return torch._inductor.aot_compile(program.module(), args, options={"max_autotune": True})  # want HSW217


def kept(args):
    model = loaded()
    hotswap.prepare(model, target_rank=64)
    program = export(Logits(model), args)
    options = {"max_autotune": True, "always_keep_tensor_constants": True}
    aoti_compile_and_package(program, package_path="model.pt2", inductor_configs=options)


def saved_prepared(args):
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=64)
    torch.export.save(export(model, args), "model.pt2")


def saved_enabled(args):
    pipe = FluxPipeline.from_pretrained("base")
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights("a", adapter_name="style")
    torch.export.save(export(pipe.transformer, args), "model.pt2")


def saved_fused(args):
    pipe = FluxPipeline.from_pretrained("base")
    pipe.load_lora_weights("a", adapter_name="style")
    pipe.fuse_lora()
    torch.export.save(export(pipe.transformer, args), "model.pt2")


def saved_loaded_for_a_fleet(args, plan):
    model = hotswap.load(AutoModelForCausalLM.from_pretrained("base"), plan, "a")
    torch.export.save(export(model, args), "model.pt2")


def by_hotswap(args):
    model = loaded()
    hotswap.prepare(model, target_rank=64)
    hotswap.export(model, args, "model.pt2")


def merged(args):
    model = loaded().merge_and_unload()
    aoti_compile_and_package(export(model, args), package_path="model.pt2")


def merged_in_place(args):
    model = loaded()
    model.merge_adapter()
    aoti_compile_and_package(export(model, args), package_path="model.pt2")


def without_adapter(args):
    model = AutoModelForCausalLM.from_pretrained("base")
    aoti_compile_and_package(export(model, args), package_path="model.pt2")


def with_options_of_others(args, options):
    model = loaded()
    hotswap.prepare(model, target_rank=64)
    aoti_compile_and_package(export(model, args), inductor_configs=options)


def given(model, args):
    aoti_compile_and_package(export(model, args), package_path="model.pt2")
