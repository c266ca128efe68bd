"""One model is compiled, the other one prepared: two objects."""
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

judge = AutoModelForCausalLM.from_pretrained("base/judge")
judge = torch.compile(judge)
judge(torch.ones(1, 8, dtype=torch.long))
writer = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a")
prepare_model_for_compiled_hotswap(writer, target_rank=64)
writer = torch.compile(writer)
