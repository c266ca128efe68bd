"""FastAPI with a lifespan: everything is set up before the first request."""
from contextlib import asynccontextmanager
import torch
from fastapi import FastAPI
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM, AutoTokenizer
state = {}
@asynccontextmanager
async def lifespan(app: FastAPI):
    base = AutoModelForCausalLM.from_pretrained("llama")
    model = PeftModel.from_pretrained(base, "adapters/a")
    prepare_model_for_compiled_hotswap(model, target_rank=64)
    state["model"] = torch.compile(model)
    state["tokenizer"] = AutoTokenizer.from_pretrained("llama")
    yield
    state.clear()
app = FastAPI(lifespan=lifespan)
@app.post("/adapters/{name}")
async def switch(name: str):
    hotswap_adapter(state["model"], f"adapters/{name}", adapter_name="default")
    return {"active": name}
@app.post("/generate")
async def generate(prompt: str):
    ids = state["tokenizer"](prompt, return_tensors="pt")
    with torch.inference_mode():
        return {"text": state["model"].generate(**ids)}
