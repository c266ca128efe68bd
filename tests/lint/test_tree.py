"""Names from files of the same tree are followed, and findings say where the other half stands."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from hotswap.lint.check import check_source
from hotswap.lint.settings import Settings

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


def write(folder: Path, files: dict[str, str]) -> set[tuple[str, int, str]]:
    """Write the files; return path, line and code of what they say is wrong."""
    wanted = set()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        for number, line in enumerate(path.read_text().splitlines(), 1):
            wanted |= {(name, number, code) for code in re.findall(r"# want (HSW\d+)", line)}
    return wanted


def found(folder: Path) -> set[tuple[str, int | None, str]]:
    findings = check_source(folder)
    return {(Path(f.where).relative_to(folder).as_posix(), f.line, f.code) for f in findings}


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


@pytest.mark.parametrize("name", CASES)
def test_a_tree_is_reported_where_it_says(tmp_path: Path, name: str) -> None:
    wanted = write(tmp_path, CASES[name])
    assert found(tmp_path) == wanted


def test_the_finding_says_where_the_other_half_stands(tmp_path: Path) -> None:
    write(tmp_path, CASES["a function that compiles"])
    (finding,) = check_source(tmp_path)
    related = [
        (Path(r.where).relative_to(tmp_path).as_posix(), r.line, r.message) for r in finding.related
    ]
    assert related == [("core/speed.py", 4, "compiled here")]


def test_noqa_in_the_file_of_the_finding_counts(tmp_path: Path) -> None:
    files = dict(CASES["the mistake in the other module"])
    files["late.py"] = files["late.py"].replace("# want HSW203", "# noqa: HSW203")
    write(tmp_path, files)
    assert found(tmp_path) == set()


def test_settings_of_the_file_of_the_finding_count(tmp_path: Path) -> None:
    write(tmp_path, CASES["the mistake in the other module"])
    for name, told in (("late.py", 0), ("app.py", 1)):
        settings = Settings(per_file_ignores={name: ["HSW203"]}, root=tmp_path)
        assert len(check_source(tmp_path, settings=settings)) == told


def test_a_comment_in_the_file_of_the_finding_is_used(tmp_path: Path) -> None:
    files = dict(CASES["the mistake in the other module"])
    files["late.py"] = files["late.py"].replace("# want HSW203", "# noqa: HSW203, HSW205")
    write(tmp_path, files)
    (unused,) = check_source(tmp_path, settings=Settings(extend_select=["unused-noqa"]))
    assert "suppresses HSW205" in unused.message


def test_only_files_that_are_linted_are_followed(tmp_path: Path) -> None:
    write(tmp_path, CASES["a function that compiles"])
    assert check_source(tmp_path / "app.py") == []
    assert len(check_source([tmp_path / "app.py", tmp_path / "core" / "speed.py"])) == 1


def test_a_module_of_the_same_name_elsewhere_is_not_taken(tmp_path: Path) -> None:
    files = dict(CASES["a function that compiles"])
    files["other/core/speed.py"] = files.pop("core/speed.py")
    write(tmp_path, files)
    assert found(tmp_path) == set()


def test_a_module_that_is_no_python_is_told_once(tmp_path: Path) -> None:
    files = dict(CASES["a function that compiles"])
    files["core/speed.py"] = "import hotswap\ndef (:\n"
    write(tmp_path, files)
    assert found(tmp_path) == {("core/speed.py", 2, "HSW200")}


def test_fixtures_of_the_conftests_above_are_followed(tmp_path: Path) -> None:
    conftest = """
        import pytest
        from diffusers import FluxPipeline

        @pytest.fixture
        def flux():
            return FluxPipeline.from_pretrained("tiny")
    """
    inner = """
        import pytest

        @pytest.fixture
        def served(flux):
            flux.enable_lora_hotswap(target_rank=8)
            flux.load_lora_weights("a", adapter_name="look")
            flux.transformer.compile()
            yield flux
    """
    tests = """
        def test_swaps(served):
            served.load_lora_weights("b", adapter_name="look", hotswap=True)

        def test_adds(served):
            served("x")
            served.load_lora_weights("b", adapter_name="other")  # want HSW206
    """
    files = {"tests/conftest.py": conftest, "tests/web/conftest.py": inner}
    wanted = write(tmp_path, {**files, "tests/web/test_app.py": tests})
    assert found(tmp_path) == wanted
    elsewhere = write(tmp_path, {"web/test_app.py": tests.replace("# want", "#")})
    assert {place for place in found(tmp_path) if place[0] == "web/test_app.py"} == elsewhere


def test_a_file_that_takes_no_step_itself_is_followed_into_two_others(tmp_path: Path) -> None:
    load = """
        from diffusers import FluxPipeline

        def load():
            flux = FluxPipeline.from_pretrained("base")
            flux.load_lora_weights("a", adapter_name="look")
            return flux

        def change(flux, path):
            flux.load_lora_weights(path, adapter_name="look", hotswap=True)  # want HSW205
    """
    serve = """
        from functools import partial
        import loading

        class Served:
            def __init__(self):
                self.flux = loading.load()
                self.flux.transformer.compile()
                self.use = partial(loading.change, self.flux)
    """
    main = """
        import sys
        from serve import Served

        served = Served()
        for path in sys.argv[1:]:
            served.use(path)
            served.flux("x")
    """
    files = {"loading.py": load, "serve.py": serve, "main.py": main}
    wanted = write(tmp_path, files)
    assert found(tmp_path) == wanted
    write(tmp_path, {"main.py": main.replace("served.use", "print")})
    assert found(tmp_path) == set()
