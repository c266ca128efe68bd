"""hotswap swaps without torch.compile at all."""
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
for p in "bcd":
    hotswap_adapter(model, p, adapter_name="default")
    model.generate()
