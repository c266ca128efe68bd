"""Programs of several files, by what one of them has from another; what is wrong stands on the line."""

from __future__ import annotations

import textwrap

SPEED = """
    import torch

    def speed_up(pipe):
        pipe.unet = torch.compile(pipe.unet)
        pipe("warm")
        return pipe
"""
MAKE = """
    from diffusers import StableDiffusionPipeline

    def make(repo):
        sd = StableDiffusionPipeline.from_pretrained(repo)
        sd.enable_lora_hotswap(target_rank=8)
        sd.load_lora_weights("first", adapter_name="look")
        return sd
"""
SHOP = """
    from diffusers import StableDiffusionPipeline

    class Shop:
        def __init__(self, repo):
            self.sd = StableDiffusionPipeline.from_pretrained(repo)

        def open(self, file):
            self.sd.enable_lora_hotswap(target_rank=8)
            self.sd.load_lora_weights(file, adapter_name="look")
            self.sd.unet.compile()
"""
CASES = {
    "a function that compiles": {
        "core/speed.py": SPEED,
        "app.py": """
            from diffusers import StableDiffusionPipeline
            from core.speed import speed_up

            sd = speed_up(StableDiffusionPipeline.from_pretrained("sd"))
            sd.load_lora_weights("a", adapter_name="a")  # want HSW206
            sd("x")
        """,
    },
    "a function under another name": {
        "speed.py": SPEED,
        "app.py": """
            from diffusers import StableDiffusionPipeline
            from speed import speed_up as fast

            class Painter:
                def __init__(self):
                    self.sd = StableDiffusionPipeline.from_pretrained("sd")
                    fast(self.sd)

                def wear(self, file):
                    self.sd.load_lora_weights(file, adapter_name=file)  # want HSW206
                    return self.sd("x")
        """,
    },
    "a module under another name, in a package with src": {
        "src/shop/__init__.py": "",
        "src/shop/speed.py": SPEED,
        "src/shop/app.py": """
            from diffusers import StableDiffusionPipeline
            import shop.speed as s

            sd = StableDiffusionPipeline.from_pretrained("sd")
            s.speed_up(sd)
            sd.load_lora_weights("a", adapter_name="a")  # want HSW206
            sd("x")
        """,
    },
    "a module by its dotted name": {
        "shop/__init__.py": "",
        "shop/speed.py": SPEED,
        "app.py": """
            import shop.speed
            from diffusers import StableDiffusionPipeline

            sd = StableDiffusionPipeline.from_pretrained("sd")
            shop.speed.speed_up(sd)
            sd.load_lora_weights("a", adapter_name="a")  # want HSW206
            sd("x")
        """,
    },
    "relative, and handed on by a package": {
        "shop/__init__.py": "from .inner.speed import speed_up\n",
        "shop/inner/__init__.py": "",
        "shop/inner/speed.py": SPEED,
        "shop/app.py": """
            from diffusers import StableDiffusionPipeline
            from . import speed_up

            sd = speed_up(StableDiffusionPipeline.from_pretrained("sd"))
            sd.load_lora_weights("a", adapter_name="a")  # want HSW206
            sd("x")
        """,
    },
    "a maker and a compiler in two modules, and a swap that is right": {
        "make.py": MAKE,
        "speed.py": SPEED,
        "app.py": """
            from make import make
            from speed import speed_up

            sd = speed_up(make("sd"))
            sd.load_lora_weights("b", adapter_name="look", hotswap=True)
            sd("x")
        """,
    },
    "a maker and a compiler in two modules, and another name": {
        "make.py": MAKE,
        "speed.py": SPEED,
        "app.py": """
            from make import make
            from speed import speed_up

            sd = speed_up(make("sd"))
            sd.load_lora_weights("b", adapter_name="other", hotswap=True)  # want HSW208
        """,
    },
    "a model that a module keeps": {
        "state.py": """
            from diffusers import FluxPipeline

            flux = FluxPipeline.from_pretrained("flux")
            flux.transformer.compile()
            flux("warm")
        """,
        "routes.py": """
            from state import flux

            def paint(style):
                flux.load_lora_weights(style, adapter_name=style)  # want HSW206
                return flux("x")
        """,
    },
    "the derived class in another file": {
        "shop/__init__.py": "",
        "shop/base.py": SHOP,
        "shop/loud.py": """
            from .base import Shop

            class Loud(Shop):
                def volume(self, value):
                    self.sd.set_adapters(["look"], [value])  # want HSW210
        """,
    },
    "an instance of a class of another file": {
        "base.py": SHOP,
        "app.py": """
            from base import Shop

            shop = Shop("sd")
            shop.open("first")
            shop.sd.load_lora_weights("b", adapter_name="look", hotswap=True)
            shop.sd.load_lora_weights("c", adapter_name="other")  # want HSW206
        """,
    },
    "constants in a module that names no API": {
        "shop/__init__.py": "",
        "shop/names.py": """
            SLOT = "look"
            RANK = 8
        """,
        "shop/make.py": """
            from diffusers import StableDiffusionPipeline
            from shop import names

            def make(repo):
                sd = StableDiffusionPipeline.from_pretrained(repo)
                sd.enable_lora_hotswap(target_rank=names.RANK)
                sd.load_lora_weights("first", adapter_name=names.SLOT)
                sd.unet.compile()
                return sd
        """,
        "shop/app.py": """
            from .make import make
            from .names import SLOT

            sd = make("sd")
            sd.load_lora_weights("a", adapter_name=SLOT, hotswap=True)
            sd.load_lora_weights("a", adapter_name="style", hotswap=True)  # want HSW208
        """,
    },
    "a base class that names no API, and has an order": {
        "core/engine.py": """
            class Engine:
                def __init__(self, repo, first):
                    self.repo = repo
                    self.open()
                    self.ready()
                    self.wear(first)

                def open(self):
                    raise NotImplementedError
        """,
        "core/text.py": """
            import torch
            from core.engine import Engine
            from peft import PeftModel
            from peft.utils.hotswap import prepare_model_for_compiled_hotswap
            from transformers import AutoModel

            class Text(Engine):
                def open(self):
                    self.model = AutoModel.from_pretrained(self.repo)

                def ready(self):
                    prepare_model_for_compiled_hotswap(self.model, target_rank=8)  # want HSW202

                def wear(self, first):
                    self.model = torch.compile(PeftModel.from_pretrained(self.model, first))
        """,
    },
    "all names of a module": {
        "shop/shared.py": """
            from diffusers import StableDiffusionPipeline

            SLOT = "look"
            sd = StableDiffusionPipeline.from_pretrained("sd")
            sd.enable_lora_hotswap(target_rank=8)
            sd.load_lora_weights("first", adapter_name=SLOT)
            sd.unet.compile()
        """,
        "shop/app.py": """
            from shop.shared import *

            def wear(file):
                sd.load_lora_weights(file, adapter_name=SLOT, hotswap=True)

            def soften(weight):
                sd.set_adapters(SLOT, weight)  # want HSW210
        """,
    },
    "modules that import each other": {
        "one.py": "import two\n" + textwrap.dedent(SPEED),
        "two.py": """
            import one
            from diffusers import StableDiffusionPipeline

            sd = StableDiffusionPipeline.from_pretrained("sd")
            one.speed_up(sd)
            sd.load_lora_weights("a", adapter_name="a")  # want HSW206
            sd("x")
        """,
    },
    "a function further down than the module that calls it is long": {
        "loras.py": "# a licence\n" * 60
        + textwrap.dedent("""
            import os

            class Loras:
                def __init__(self, pipe):
                    self.pipe = pipe

                def wear(self, file, weight=1.0):
                    if not os.path.exists(file):
                        raise FileNotFoundError(file)

                    name = os.path.basename(file)

                    name = name.replace(".", "_")

                    self.pipe.load_lora_weights(file, adapter_name=name)  # want HSW206
                    return name
        """),
        "app.py": """
            import torch
            from diffusers import FluxPipeline
            from loras import Loras

            class Painter:
                def __init__(self):
                    self.flux = FluxPipeline.from_pretrained("flux")
                    self.flux.transformer.compile()
                    self.loras = Loras(self.flux)

                def paint(self, file):
                    self.loras.wear(file)
                    return self.flux("x")
        """,
    },
    "a method that does nothing, and does something in a class of another file": {
        "base.py": """
            class Worker:
                def __init__(self):
                    self.pipe = self.make()
                    self.before()
                    self.pipe.load_lora_weights("first", adapter_name="look")
                    self.after()
                    self.pipe.transformer.compile()

                def make(self): raise NotImplementedError
                def before(self): pass
                def after(self): ...

                def work(self, look):
                    self.pipe.load_lora_weights(look, adapter_name="look", hotswap=True)  # want HSW205
                    return self.pipe("x")
        """,
        "right.py": """
            from base import Worker
            from diffusers import FluxPipeline

            class Right(Worker):
                def make(self):
                    return FluxPipeline.from_pretrained("flux")

                def before(self):
                    self.pipe.enable_lora_hotswap(target_rank=8)
        """,
        "late.py": """
            from base import Worker
            from diffusers import FluxPipeline

            class Late(Worker):
                def make(self):
                    return FluxPipeline.from_pretrained("flux")

                def after(self):
                    self.pipe.enable_lora_hotswap(target_rank=8)  # want HSW203
        """,
        "unprepared.py": """
            from base import Worker
            from diffusers import FluxPipeline

            class Unprepared(Worker):
                def make(self):
                    return FluxPipeline.from_pretrained("flux")
        """,
    },
    "the mistake in the other module": {
        "late.py": """
            def allow(pipe):
                pipe.enable_lora_hotswap(target_rank=8)  # want HSW203
        """,
        "app.py": """
            from diffusers import FluxPipeline
            from late import allow

            flux = FluxPipeline.from_pretrained("flux")
            flux.load_lora_weights("a", adapter_name="a")
            allow(flux)
        """,
    },
    "a global that a function of another module sets": {
        "state.py": """
            from diffusers import FluxPipeline

            flux = None

            def start():
                global flux
                flux = FluxPipeline.from_pretrained("flux")
                flux.transformer.compile()
                flux("warm")
        """,
        "app.py": """
            import state

            state.start()
            state.flux.load_lora_weights("a", adapter_name="a")  # want HSW206
            state.flux("x")
        """,
    },
}
