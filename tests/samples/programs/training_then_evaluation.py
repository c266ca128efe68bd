"""Training, then evaluation in no_grad: not a warm-up."""
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = get_peft_model(AutoModelForCausalLM.from_pretrained("g"), LoraConfig(r=8))
model = torch.compile(model)
opt = torch.optim.AdamW(model.parameters())
for batch in range(10):
    loss = model(batch).loss
    loss.backward()
    opt.step()
with torch.no_grad():
    model(0)
model.save_pretrained("out")
