from diffusers import FluxPipeline


def pipeline():
    return FluxPipeline.from_pretrained("base")


def nothing_is_wrong():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)  # noqa: enable-after-load  # want HSW293


def another_rule_is_broken():
    pipe = pipeline()
    pipe.load_lora_weights("a", hotswap=True)  # noqa: swap-while-merged # want HSW207  # want HSW293


def it_is_used():
    pipe = pipeline()
    pipe.load_lora_weights("a", hotswap=True)  # noqa: hotswap-without-name


def it_names_none():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")  # noqa
