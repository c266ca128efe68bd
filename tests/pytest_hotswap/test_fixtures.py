"""The fixtures."""

from __future__ import annotations

import pytest

from tests.support.warm import run_pytest


def run(pytester: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return run_pytest(pytester, "-p", "no:cacheprovider", *arguments)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_watch_is_active_and_the_other_is_the_context_manager(
    pytester: pytest.Pytester,
) -> None:
    run(
        pytester,
        """
        import hotswap
        import torch

        def test_watch(hotswap_compile_watch):
            assert isinstance(hotswap_compile_watch, hotswap.CompileLog)
            compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
            compiled(torch.ones(2))
            compiled(torch.ones(3))
            counts = hotswap_compile_watch.as_dict()
            assert (counts["first_compiles"], counts["recompiles"]) == (1, 1)

        def test_forbid(hotswap_forbid_recompiles):
            assert hotswap_forbid_recompiles is hotswap.forbid_recompiles
        """,
    ).assert_outcomes(passed=2)


def test_the_lists_of_an_active_watch_are_up_to_date_inside_the_test(
    pytester: pytest.Pytester,
) -> None:
    run(
        pytester,
        """
        import torch

        def test_watch(hotswap_compile_watch):
            compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
            compiled(torch.ones(2))
            assert len(hotswap_compile_watch.first_compiles) == 1
            compiled(torch.ones(3))
            assert len(hotswap_compile_watch.recompiles) == 1
        """,
    ).assert_outcomes(passed=1)


def test_the_factory_makes_the_adapter_that_was_asked_for(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        import pytest
        import torch
        from peft import PeftModel
        from torch import nn

        def base():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

        def test_make(hotswap_adapter_factory):
            model, x = base(), torch.ones(1, 8)
            before = model(x)
            first = hotswap_adapter_factory(model, rank=2, alpha=6, target_modules=["0", "2"])
            assert type(model[0]) is nn.Linear and torch.equal(model(x), before)
            loaded = PeftModel.from_pretrained(base(), first)
            assert loaded.peft_config["default"].r == 2
            assert loaded.peft_config["default"].lora_alpha == 6
            assert not torch.allclose(loaded(x), before)

        def test_the_seed_decides(hotswap_adapter_factory):
            def weights(name, seed):
                path = hotswap_adapter_factory(base(), target_modules=["0"], name=name, seed=seed)
                assert path.name == name
                return (path / "adapter_model.safetensors").read_bytes()

            assert weights("a", 1) == weights("b", 1)
            assert weights("c", 2) != weights("d", 3)
            with pytest.raises(FileExistsError, match="'a'"):
                weights("a", 1)
        """,
    ).assert_outcomes(passed=2)
