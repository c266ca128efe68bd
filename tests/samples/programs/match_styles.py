"""An enum of styles, a dispatcher with match."""
import enum, torch
from diffusers import FluxPipeline
class Style(enum.Enum):
    INK = "ink"
    OIL = "oil"
class Studio:
    def __init__(self):
        self._pipe = FluxPipeline.from_pretrained("f")
        self._pipe.enable_lora_hotswap(target_rank=32)
        self._pipe.load_lora_weights(Style.INK.value, adapter_name="style")
        self._pipe.transformer.compile(mode="max-autotune")
        self._pipe("warm")
    def set(self, style: Style):
        match style:
            case Style.INK:
                self._pipe.load_lora_weights("ink", adapter_name="style", hotswap=True)
            case Style.OIL:
                self._pipe.load_lora_weights("oil", adapter_name="style")  # want HSW216
    def __call__(self, p):
        return self._pipe(p)
