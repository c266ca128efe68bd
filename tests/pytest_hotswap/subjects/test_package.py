"""PackageSubject: the contract is green on what hotswap exports, and red on what others compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import hotswap
from hotswap.report.laws import LAWS
from pytest_hotswap import PackageSubject, ReferenceSubject
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from tests.support.packages import INPUT, VARIANTS, Packages, base, needs_compiler

pytestmark = pytest.mark.filterwarnings("ignore")
Deploy = Callable[[str], Deployment]


class Exported(PackageSubject):
    def base_model(self) -> Any:
        return base()

    def inputs(self) -> Mapping[str, Any]:
        return {"x": INPUT}


class Loaded:
    """A package as others load it: its constants are the tensors of a prepared model."""

    def __init__(self, model: Any, path: Path) -> None:
        self.model = model
        self.package = torch._inductor.aoti_load_package(str(path))
        live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        known = self.package.get_constant_fqns()
        self.constants = {name: live[name].detach() for name in known if name in live}
        self.package.load_constants(self.constants, check_full_update=False, user_managed=True)

    def __call__(self, **inputs: Any) -> Any:
        return self.package(**inputs)


class Others(ReferenceSubject):
    """Swaps go to the model, and the package is to follow."""

    unsupported = PackageSubject.unsupported
    path: Path

    def base_model(self) -> Any:
        return base()

    def inputs(self) -> Mapping[str, Any]:
        return {"x": INPUT}

    def compile(self, model: Any) -> Any:
        return Loaded(model, self.path)

    def models(self, model: Any) -> list[Any]:
        return [model.model] if isinstance(model, Loaded) else super().models(model)

    def swap(self, model: Any, adapter: Path | None) -> None:
        super().swap(self.models(model)[0], adapter)

    def set_scale(self, model: Any, scale: float) -> None:
        super().set_scale(self.models(model)[0], scale)


@pytest.fixture(scope="module")
def deploy(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Deploy:
    made: dict[str, Deployment] = {}

    def of(variant: str) -> Deployment:
        if variant not in made:
            fleet = [str(folder) for folder in packages.fleet.values()]
            subject: Any
            if variant in ("keep", *VARIANTS):
                subject = Others(adapters=fleet)
                subject.path = packages.of(variant)
            else:
                subject = Exported(adapters=fleet)
                subject.package = getattr(packages, variant)
            made[variant] = Deployment(subject, tmp_path_factory.mktemp("derived"))
        return made[variant]

    return of


@needs_compiler
@pytest.mark.parametrize("law", LAWS)
def test_what_hotswap_exports_obeys(deploy: Deploy, law: str) -> None:
    assert list(violations(deploy("ours"), law)) == []
    assert list(violations(deploy("ours"), law, controls=True)) == []


@pytest.mark.parametrize("law", ["swap-equals-load", "swap-atomic", "knobs-follow"])
def test_a_program_obeys(deploy: Deploy, law: str) -> None:
    assert list(violations(deploy("program"), law)) == []


LOOKED_AT = [law for law in LAWS if law not in ("swap-forgets", "swap-isolated")]  # which take long
RED = {
    "plain": {"swap-equals-load", "swap-atomic", "knobs-follow"},
    "runtime folding": {"swap-equals-load", "swap-atomic", "knobs-follow"},
    "freezing": {"swap-equals-load", "swap-atomic", "knobs-follow", "swap-has-effect"},
}


@needs_compiler
@pytest.mark.parametrize("variant", RED)
def test_what_others_compile_breaks_the_laws_of_outputs(deploy: Deploy, variant: str) -> None:
    broken = {}
    for law in LOOKED_AT:
        found = next(violations(deploy(variant), law), None)
        if found is not None:
            assert found.raised is None, found  # it is silently wrong
            broken[law] = str(found)
    assert broken.keys() == RED[variant], broken
    assert "differs by" in broken["swap-equals-load"]


@needs_compiler
def test_a_package_that_keeps_its_constants_follows_a_model(deploy: Deploy) -> None:
    for law in ("swap-equals-load", "swap-has-effect", "swap-atomic"):
        assert list(violations(deploy("keep"), law)) == []


def test_without_a_package_the_subject_exports_one(packages: Packages, tmp_path: Path) -> None:
    class Program(Exported):
        def export(self, model: Any, path: Path) -> Path:
            return hotswap.export(model, (), path, kwargs=self.inputs(), form="program")

    fleet = [str(folder) for folder in packages.fleet.values()]
    deployment = Deployment(Program(adapters=fleet), tmp_path)
    assert list(violations(deployment, "swap-equals-load")) == []


def test_a_package_of_another_model_is_a_usage_error(packages: Packages) -> None:
    subject = Exported(adapters=[str(packages.fleet["small"])])
    subject.package = packages.program
    model = subject.load(base(), packages.fleet["small"])
    hotswap.prepare(model, target_rank=6)
    with pytest.raises(pytest.UsageError, match="another model"):
        subject.compile(model)
