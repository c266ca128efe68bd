"""What hotswap verify refuses before any work starts, and how it divides a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from hotswap.adapters.planner import plan
from hotswap.cli.fleet import memory_curve, parse_shard, read_fleet, shard
from hotswap.cli.main import main
from hotswap.cli.verify.command import run_problem
from hotswap.cli.verify.request import Request, parse_duration, usage_problem
from hotswap.cli.verify.suite import Run
from hotswap.errors import HotswapError
from hotswap.report.records import Results
from tests.support.adapter_files import write_adapter


class TestTheReportsFolder:
    def test_one_that_is_a_file_is_refused_before_the_work(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("matplotlib")
        file = tmp_path / "out"
        file.touch()
        assert main(["verify", "--demo", "--report", str(file)]) == 2
        assert f"--report {file}: cannot be written: " in capsys.readouterr().err

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
    def test_a_full_disk_is_said_before_the_work(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        pytest.importorskip("matplotlib")
        with Path("/dev/full").open("wb", buffering=0) as full:
            monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
            problem = str(usage_problem(Request(demo=True, report=tmp_path)))
        assert "No space left on device; give another folder" in problem

    def test_one_that_does_not_exist_is_made(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        assert (
            usage_problem(Request(demo=True, backend="eager", report=tmp_path / "a" / "b")) is None
        )
        assert list((tmp_path / "a" / "b").iterdir()) == []


class TestTheCompiler:
    @pytest.fixture(autouse=True)
    def _no_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)

    def test_inductor_needs_one(self) -> None:
        problem = str(usage_problem(Request(demo=True, backend="inductor")))
        assert problem.startswith("the backend inductor needs a C++ compiler, and none was found")

    def test_what_is_verified_by_default_needs_one_too(self, tmp_path: Path) -> None:
        request = Request(adapters=("a",), subject="x:Y")
        assert "needs a C++ compiler" in str(usage_problem(request))

    def test_the_demo_does_without(self) -> None:
        assert usage_problem(Request(demo=True)) is None

    def test_a_gpu_does_without(self) -> None:
        request = Request(adapters=("a",), subject="x:Y", device="cuda", backend="inductor")
        assert usage_problem(request) is None


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(demo=True, time_budget="soon"), "--time-budget is 'soon'; write seconds, or 90s"),
        (Request(demo=True, processes="two"), "-n is 'two'; write a number of processes, or auto"),
        (Request(demo=True, shard="3/2"), "--shard is '3/2'; write i/n with 1 <= i <= n"),
        (Request(demo=True, tiny=True), "--tiny cuts a model from its config; leave it out with"),
        (Request(subject="x:Y", tiny=True), "--tiny needs ADAPTER and --base PATH"),
        (Request(demo=True, inputs=Path("no.safetensors")), "--inputs no.safetensors: no such"),
        (Request(demo=True, plan=Path("no.json")), "--plan no.json: no such file; make it with"),
        (
            Request(demo=True, backend="eager", compile_mode="max-autotune"),
            "--compile-mode is induc",
        ),
        (Request(adapters=("a",), base="b", shard="2/2"), "--shard 2/2: there are only 1 adapters"),
    ],
)
def test_an_option_that_cannot_be_obeyed_is_one_sentence(request_: Request, reason: str) -> None:
    problem = str(usage_problem(request_))
    assert problem.startswith(reason)
    assert "\n" not in problem


def test_what_a_run_says_is_in_the_words_of_the_command() -> None:
    record = {"nodeid": "x", "outcome": "failed", "message": "--hotswap-subject x:Y: no such name"}
    run = Run(Results.of([record]))
    assert run_problem(Request(), run) == ["--subject x:Y: no such name"]
    (told,) = run_problem(Request(tiny=True), run)
    assert told.endswith("no such name; --tiny has cut the model, so verify the model itself")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    llama = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    llama.architectures = ["LlamaForCausalLM"]
    llama.intermediate_size, llama.num_hidden_layers, llama.vocab_size = 48, 1, 8
    llama.save_pretrained(folder)
    return str(folder)


class TestTensorParallelism:
    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"package": Path(__file__)}, "an exported package is on one device; leave"),
            ({"subject": "x:Y"}, "x:Y cuts the model itself; derive it from pytest_hotswap.Tensor"),
            ({"device": "cpu"}, "each rank has a device of its own; leave --device out"),
            ({"tp": 3}, "model.layers.0.self_attn.q_proj has 32 outputs, which 3 does not divide"),
            ({"tp": 4}, "the model has num_key_value_heads=2, which 4 does not divide; give a"),
        ],
    )
    def test_what_cannot_be_cut_is_refused_in_a_sentence(
        self, base: str, given: dict[str, Any], reason: str
    ) -> None:
        wanted: dict[str, Any] = {"adapters": ("a",), "base": base, "backend": "eager", "tp": 2}
        problem = str(usage_problem(Request(**(wanted | given))))
        assert problem.startswith(f"--tp {given.get('tp', 2)}: {reason}")
        assert "\n" not in problem

    def test_a_pipeline_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text("{}")
        request = Request(adapters=("a",), base=str(tmp_path), backend="eager", tp=2)
        assert str(usage_problem(request)).startswith("--tp 2: transformers cuts models, and ")

    def test_what_divides_is_taken(self, base: str) -> None:
        request = Request(adapters=("a",), base=base, backend="eager", tp=2)
        assert usage_problem(request) is None


def test_a_folder_that_is_named_twice_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    monkeypatch.setattr("hotswap.cli.verify.command._answer", lambda r: asked.append(r) or 0)
    assert main(["verify", "fleet/a", "fleet/b", "./fleet/a", "--base", "base"]) == 0
    (request,) = asked
    assert [Path(path).name for path in request.adapters] == ["a", "b"]


def test_inputs_are_not_for_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    file = tmp_path / "inputs.safetensors"
    file.touch()
    request = Request(adapters=("a",), base=str(tmp_path), backend="eager", inputs=file)
    assert "by inputs() of a PipelineSubject, with --subject" in str(usage_problem(request))


def test_a_hub_id_is_not_taken_for_a_folder() -> None:
    request = Request(adapters=("a",), base="org/model", backend="eager")
    assert usage_problem(request) is None


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "10d", "m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(HotswapError, match="--time-budget"):
        parse_duration(text)


class TestShards:
    SIZES = {f"adapter-{n}": 100 * (n % 7 + 1) for n in range(50)}  # noqa: RUF012

    def parts(self, paths: list[str], count: int) -> list[list[str]]:
        return [shard(paths, self.SIZES, index + 1, count) for index in range(count)]

    def test_every_adapter_is_in_one_part(self) -> None:
        found = self.parts(list(self.SIZES), 4)
        assert sorted(path for part in found for path in part) == sorted(self.SIZES)

    def test_parts_are_equal_up_to_the_largest_adapter(self) -> None:
        loads = [sum(self.SIZES[p] for p in part) for part in self.parts(list(self.SIZES), 4)]
        assert max(loads) - min(loads) <= max(self.SIZES.values())

    def test_the_order_of_the_paths_changes_nothing(self) -> None:
        forwards, backwards = list(self.SIZES), list(self.SIZES)[::-1]
        for one, other in zip(self.parts(forwards, 3), self.parts(backwards, 3), strict=True):
            assert set(one) == set(other)

    @pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3"])
    def test_what_is_no_shard_is_refused(self, text: str) -> None:
        with pytest.raises(HotswapError, match="--shard"):
            parse_shard(text)


class TestTheFleet:
    def test_an_adapter_that_conflicts_is_refused_and_the_plan_is_the_others(
        self, tmp_path: Path
    ) -> None:
        paths = [
            str(write_adapter(tmp_path / name, rank=rank)) for name, rank in (("a", 4), ("b", 8))
        ]
        fleet = read_fleet([*paths, str(tmp_path / "none")])
        assert fleet.accepted == tuple(paths)
        assert [finding.code for finding in fleet.findings] == ["HSW001"]
        assert fleet.plan is not None
        assert fleet.plan.target_rank == 8

    def test_a_given_plan_is_what_counts(self, tmp_path: Path) -> None:
        small = str(write_adapter(tmp_path / "a", rank=4))
        large = str(write_adapter(tmp_path / "b", rank=8))
        fleet = read_fleet([small, large], plan([small]))
        assert fleet.accepted == (small,)
        assert {finding.code for finding in fleet.findings} == {"HSW105"}

    def test_without_an_adapter_that_can_be_read_there_is_no_plan(self, tmp_path: Path) -> None:
        assert read_fleet([str(tmp_path / "none")]).plan is None

    def test_the_memory_curve_grows_to_what_the_plan_says(self, tmp_path: Path) -> None:
        paths = [
            str(write_adapter(tmp_path / name, rank=rank)) for name, rank in (("a", 4), ("b", 8))
        ]
        fleet = read_fleet(paths)
        assert fleet.plan is not None
        curve = memory_curve(fleet.plan, fleet.specs.values())
        assert [point["rank"] for point in curve] == list(range(1, 9))
        assert [point["admitted"] for point in curve] == [0, 0, 0, 1, 1, 1, 1, 2]
        assert curve[-1]["per_module_bytes"] == fleet.plan.padded_bytes
        assert curve[-1]["uniform_bytes"] == fleet.plan.uniform_bytes


def test_the_command_that_is_told_has_a_pattern_for_what_a_shell_made_of_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr("hotswap.cli.verify.command._answer", lambda r: asked.append(r) or 0)
    monkeypatch.chdir(tmp_path)
    for name in ("a1", "a2", "b"):
        Path("adapters", name).mkdir(parents=True)
    Path("adapters", "notes.txt").touch()
    for names in (["a1", "a2", "b"], ["a1", "a2"], ["a1", "b"]):
        main(["verify", *(f"adapters/{name}" for name in names), "--base", "x"])
    assert [request.command for request in asked] == [
        "hotswap verify 'adapters/*' --base x",
        "hotswap verify 'adapters/a*' --base x",
        "hotswap verify adapters/a1 adapters/b --base x",
    ]
    assert asked[0].adapters == ("adapters/a1", "adapters/a2", "adapters/b")
