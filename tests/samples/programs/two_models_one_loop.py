"""A teacher stays merged; the student swaps."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
teacher = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("big"), "t")
teacher.merge_adapter()
student = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("small"), "s0")
prepare_model_for_compiled_hotswap(student, target_rank=16)
teacher, student = torch.compile(teacher), torch.compile(student)
for step in range(10):
    with torch.no_grad():
        t = teacher("x")
        s = student("x")
    hotswap_adapter(student, f"s{step}", adapter_name="default")
