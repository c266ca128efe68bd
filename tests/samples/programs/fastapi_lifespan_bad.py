"""FastAPI with a lifespan that forgets the preparation."""
from contextlib import asynccontextmanager
import torch
from fastapi import FastAPI
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM
state = {}
@asynccontextmanager
async def lifespan(app: FastAPI):
    base = AutoModelForCausalLM.from_pretrained("llama")
    model = PeftModel.from_pretrained(base, "adapters/a")
    state["model"] = torch.compile(model)
    yield
    state.clear()
app = FastAPI(lifespan=lifespan)
@app.post("/adapters/{name}")
async def switch(name: str):
    hotswap_adapter(state["model"], f"adapters/{name}", adapter_name="default")  # want HSW205
    return {"active": name}
@app.post("/generate")
async def generate(prompt: str):
    with torch.inference_mode():
        return {"text": state["model"].generate(prompt)}
