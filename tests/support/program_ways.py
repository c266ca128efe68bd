"""Ways to write a sequence of steps down: a script, a class, closures, a pool, a worker and so on.

Names and unrelated statements are drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

NOISE = (
    "started = time.perf_counter()",
    "logger.info('still here')",
    "seeds = [random.randrange(2**31) for _ in range(4)]",
    "options = {'steps': 4, 'guidance': 3.5}",
    "if os.environ.get('VERBOSE'):\n    print('verbose')",
    "for number in range(3):\n    logger.debug(number)",
    "try:\n    os.makedirs('out')\nexcept FileExistsError:\n    pass",
    "torch.backends.cuda.matmul.allow_tf32 = True",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One statement; ``M`` stands for the model, ``code`` is what is wrong with it.

    ``inside`` is the context manager that it is written in.
    """

    name: str
    text: str
    code: str = ""
    inside: str = ""


Steps = list[Step]


def step_at(steps: Steps, name: str) -> int:
    """Return where the step of that name stands."""
    return next(n for n, step in enumerate(steps) if step.name == name)


def without_gradients(steps: Steps) -> Steps:
    """Write every run of the model in ``torch.inference_mode()``."""
    return [
        replace(step, inside="torch.inference_mode()") if step.name in ("run", "use") else step
        for step in steps
    ]


def _lines(steps: Steps, model: str, pick: random.Random) -> list[str]:
    """Write steps with unrelated statements in between; a mark says what is wrong with a line."""
    lines: list[str] = []
    for step in steps:
        if pick.random() < 0.3:
            lines += pick.choice(NOISE).split("\n")
        text = step.text.replace("M", model) if "M" in step.text else step.text
        for known in ("AutoModelForCausalLM", "PeftModel"):  # names with a capital M of their own
            text = text.replace(known.replace("M", model), known)
        mark = f"  # wrong {step.code}" if step.code else ""
        if step.inside:
            lines += [f"with {step.inside}:", f"    {text}{mark}"]
        else:
            lines.append(f"{text}{mark}")
    return lines


def _split(steps: Steps) -> tuple[Steps, Steps]:
    """Divide the steps into those that set up and those of a request."""
    at = step_at(steps, "swap")
    while at and steps[at - 1].name == "new":
        at -= 1
    return steps[:at], steps[at:]


def _indent(lines: list[str], depth: int = 1) -> list[str]:
    return [f"{'    ' * depth}{line}" for line in lines]


def _script(steps: Steps, pick: random.Random) -> list[str]:
    return ["batch = torch.ones(1, 8)", *_lines(steps, _name(pick), pick)]


def _function(steps: Steps, pick: random.Random) -> list[str]:
    name = pick.choice(["main", "serve", "demo"])
    head = pick.choice([f"def {name}(batch=None):", f"async def {name}(batch=None):"])
    tail = [] if pick.random() < 0.5 or head.startswith("async") else ["", "", f"{name}()"]
    return [head, *_indent(_lines(steps, _name(pick), pick)), *tail]


def _module(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = _name(pick)
    body = _lines(then, model, pick)
    again = any(line.startswith(f"{model} = ") for line in body)
    handler = [f"global {model}", *body] if again else body
    head = pick.choice(["def request(prompt):", "async def request(prompt):"])
    return [
        "batch = torch.ones(1, 8)",
        *_lines(first, model, pick),
        "",
        "",
        head,
        *_indent(handler),
    ]


def _class(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = f"self.{_name(pick)}"
    start = pick.choice(["__init__", "setup", "start"])
    head = [
        "class Service:",
        "    batch = None",
        "",
        f"    def {start}(self):",
        "        batch = None",
    ]
    request = ["", "    def request(self, prompt):", "        batch = prompt"]
    tail = ["", "", "service = Service()"] if pick.random() < 0.5 else []
    return [
        *head,
        *_indent(_lines(first, model, pick), 2),
        *request,
        *_indent(_lines(then, model, pick), 2),
        *tail,
    ]


def _closure(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = _name(pick)
    body = _lines(then, model, pick)
    again = any(line.startswith(f"{model} = ") for line in body)
    inner = [f"nonlocal {model}", *body] if again else body
    return [
        "def create():",
        *_indent(
            ["batch = torch.ones(1, 8)", *_lines(first, model, pick), "", "def request(prompt):"]
        ),
        *_indent(inner, 2),
        "",
        "    return request",
    ]


def _helpers(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model, other = _name(pick), _name(pick)
    return [
        "def open_model(batch=None):",
        *_indent([*_lines(first, model, pick), f"return {model}"]),
        "",
        "",
        f"def request({other}, batch=None):",
        *_indent(_lines(then, other, pick)),
        "",
        "",
        "request(open_model())",
    ]


def _data_class(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model, field = _name(pick), pick.choice(["engine", "inner", "net"])
    return [
        "from dataclasses import dataclass",
        "",
        "",
        "@dataclass",
        "class Holder:",
        f"    {field}: object",
        "    count: int = 0",
        "",
        "",
        "def build(batch=None):",
        *_indent([*_lines(first, model, pick), f"return Holder({model})"]),
        "",
        "",
        "holder = build()",
        "",
        "",
        "def request(batch):",
        *_indent(_lines(then, f"holder.{field}", pick)),
    ]


def _application(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    kept = f"app.state.{_name(pick)}"
    return [
        "from contextlib import asynccontextmanager",
        "from fastapi import FastAPI, Request",
        "",
        "",
        "@asynccontextmanager",
        "async def lifespan(app):",
        *_indent(["batch = torch.ones(1, 8)", *_lines(first, kept, pick), "yield"]),
        "",
        "",
        "app = FastAPI(lifespan=lifespan)",
        "",
        "",
        "@app.post('/request')",
        "async def answer(request: Request, batch: str):",
        *_indent(_lines(then, f"request.{kept}", pick)),
    ]


def _lazy(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model, other = _name(pick), _name(pick)
    return [
        f"_{model} = None",
        "",
        "",
        "def get(batch=None):",
        f"    global _{model}",
        f"    if _{model} is None:",
        *_indent(_lines(first, f"_{model}", pick), 2),
        f"    return _{model}",
        "",
        "",
        "def request(batch):",
        f"    {other} = get()",
        *_indent(_lines(then, other, pick)),
    ]


def _guarded(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    name = _name(pick)
    guard = pick.choice([f"if self.{name} is not None:", f"if self.{name}:", "if self.ready:"])
    return [
        "class Service:",
        "    def __init__(self):",
        f"        self.{name} = None",
        "        self.ready = False",
        "",
        "    def load(self, batch=None):",
        f"        {guard}",
        "            return",
        *_indent(_lines(first, f"self.{name}", pick), 2),
        "        self.ready = True",
        "",
        "    async def request(self, batch):",
        pick.choice(["        self.load()", "        await asyncio.to_thread(self.load)"]),
        *_indent(_lines(then, f"self.{name}", pick), 2),
    ]


def _cached(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model, other = _name(pick), _name(pick)
    decorators = ["functools.cache", "functools.lru_cache(maxsize=1)", "st.cache_resource"]
    return [
        "import functools",
        "import streamlit as st",
        "",
        "",
        f"@{pick.choice(decorators)}",
        "def get(batch=None):",
        *_indent([*_lines(first, model, pick), f"return {model}"]),
        "",
        "",
        "if batch := st.text_input('prompt'):",
        f"    {other} = get()",
        *_indent(_lines(then, other, pick)),
    ]


def _property(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    name, model = _name(pick), _name(pick)
    return [
        "import functools",
        "",
        "",
        "class Service:",
        "    @functools.cached_property",
        f"    def {name}(self):",
        "        batch = None",
        *_indent([*_lines(first, model, pick), f"return {model}"], 2),
        "",
        "    def request(self, batch):",
        *_indent(_lines(then, f"self.{name}", pick), 2),
    ]


def _pool(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model, other = _name(pick), _name(pick)
    return [
        "POOL = {}",
        "",
        "",
        "def get(key, batch=None):",
        "    if key not in POOL:",
        *_indent([*_lines(first, model, pick), f"POOL[key] = {model}"], 2),
        "    return POOL[key]",
        "",
        "",
        "def request(key, batch):",
        f"    {other} = get(key)",
        *_indent(_lines(then, other, pick)),
    ]


def _worker(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = _name(pick)
    return [
        "import queue",
        "import threading",
        "",
        "jobs = queue.Queue()",
        "",
        "",
        "def work(batch=None):",
        *_indent(_lines(first, model, pick)),
        "    while True:",
        "        batch = jobs.get()",
        "        try:",
        *_indent(_lines(then, model, pick), 3),
        "        except Exception:",
        "            logger.exception('failed')",
        "        finally:",
        "            jobs.task_done()",
        "",
        "",
        "threading.Thread(target=work, daemon=True).start()",
    ]


def _loop(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = _name(pick)
    head = pick.choice(["for batch in batches:", "for n, batch in enumerate(batches):"])
    return [
        "batch, *batches = torch.ones(5, 1, 8)",
        *_lines(first, model, pick),
        head,
        *_indent(_lines(then, model, pick)),
    ]


def _subclass(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    name = _name(pick)
    return [
        "class Base:",
        "    def __init__(self, batch=None):",
        *_indent(_lines(first, f"self.{name}", pick), 2),
        "",
        "",
        "class Service(Base):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.count = 0",
        "",
        "    def request(self, batch):",
        *_indent(_lines(then, f"self.{name}", pick), 2),
    ]


def _manager(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    name = _name(pick)
    return [
        "class Session:",
        "    def __enter__(self):",
        "        batch = None",
        *_indent([*_lines(first, f"self.{name}", pick), "return self"], 2),
        "",
        "    def __exit__(self, *error):",
        f"        del self.{name}",
        "",
        "    def request(self, batch):",
        *_indent(_lines(then, f"self.{name}", pick), 2),
        "",
        "",
        "with Session() as session:",
        "    session.request('a')",
    ]


def _tried(steps: Steps, pick: random.Random) -> list[str]:
    first, then = _split(steps)
    model = _name(pick)
    return [
        "def main(batch=None):",
        "    try:",
        *_indent(_lines(first, model, pick), 2),
        "    except (OSError, RuntimeError):",
        "        logger.exception('no model')",
        "        raise",
        *_indent(_lines(then, model, pick)),
    ]


WAYS: tuple[Callable[[Steps, random.Random], list[str]], ...] = (
    _script,
    _function,
    _module,
    _class,
    _closure,
    _helpers,
    _data_class,
    _application,
    _lazy,
    _guarded,
    _cached,
    _property,
    _pool,
    _worker,
    _loop,
    _subclass,
    _manager,
    _tried,
)


def _name(pick: random.Random) -> str:
    return pick.choice(["pipe", "model", "engine", "painter", "llm", "x", "speaker", "base", "net"])
