"""``hotswap verify``, run as a user runs it, and the report it makes of the suite's records."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from safetensors.torch import load_file, save_file

from hotswap.adapters.planner import plan
from hotswap.bench.models import pretrained, write_adapter
from hotswap.cli.main import main
from hotswap.cli.verify.child import Ended
from hotswap.cli.verify.command import exit_code
from hotswap.cli.verify.demo import ADAPTERS, write_demo
from hotswap.report.document import read
from hotswap.report.laws import LAWS
from tests.support.warm import verify

HAS_EXTRA = all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib"))
COMMAND = [sys.executable, "-m", "hotswap", "verify", "--backend", "eager"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return write_demo(tmp_path_factory.mktemp("demo"), layers=1)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def demo_run(report: Path) -> subprocess.CompletedProcess[str]:
    """The demo, in an environment that tries to skip every law."""
    env = {"PYTEST_ADDOPTS": "-k nothing --collect-only", "PYTEST_PLUGINS": "no_such_plugin"}
    words = ("--report", str(report)) if HAS_EXTRA else ()
    command = [*COMMAND, "--demo", "--no-timing", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.wheel
class TestTheDemo:
    def test_is_ready_whatever_the_environment_says(
        self, demo_run: subprocess.CompletedProcess[str]
    ) -> None:
        assert demo_run.returncode == 0, demo_run.stdout + demo_run.stderr
        told = [line for line in demo_run.stderr.splitlines() if not line.startswith("verifying: ")]
        assert told[HAS_EXTRA:] == []

    def test_shows_the_plan_then_the_adapters_then_the_laws_then_the_verdict(
        self, demo_run: subprocess.CompletedProcess[str]
    ) -> None:
        out = demo_run.stdout
        places = [out.index("\nAdapters\n"), out.index("\nLaws\n"), out.index("ready to hot-swap:")]
        assert 0 < places[0] < places[1] < places[2]
        assert "Target rank: 16" in out[: places[0]]
        assert "Preparation: required" in out[: places[0]]

    def test_judges_each_adapter(self, demo_run: subprocess.CompletedProcess[str]) -> None:
        rows = demo_run.stdout.split("\nAdapters\n")[1].split("\n\n")[0].splitlines()[2:]
        assert [row.split()[0] for row in rows] == list(ADAPTERS)
        assert all("stayed put" in row for row in rows)
        assert all("not run" not in row and "failed" not in row for row in rows)

    def test_names_every_law_in_order_with_its_control(
        self, demo_run: subprocess.CompletedProcess[str]
    ) -> None:
        rows = demo_run.stdout.split("\nLaws\n")[1].split("\n\n")[0].splitlines()[2:]
        assert tuple(row.split()[0] for row in rows[: len(LAWS)]) == tuple(LAWS)
        assert all(row.split()[1:3] == ["passed", "passed"] for row in rows[: len(LAWS)])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it runs")
    def test_says_what_needs_a_gpu_and_did_not_run(
        self, demo_run: subprocess.CompletedProcess[str]
    ) -> None:
        told = "zero-recompiles: not run: CUDA graphs need a GPU, the model is on cpu"
        assert f"\n  {told}\n" in demo_run.stdout

    def test_ends_in_numbers(self, demo_run: subprocess.CompletedProcess[str]) -> None:
        assert "\ninputs: 2 of input_ids, attention_mask, made from the config" in demo_run.stdout
        # per adapter: the first swap to it, then to each of the four, and back to it
        expected = "ready to hot-swap: 4 adapters, target rank 16, 0 recompiles in 56 swaps"
        assert demo_run.stdout.splitlines()[-1] == expected

    def test_has_no_timing_when_it_is_not_wanted(
        self, demo_run: subprocess.CompletedProcess[str]
    ) -> None:
        assert "Timing" not in demo_run.stdout


@pytest.mark.skipif(not HAS_EXTRA, reason="the extra 'report' is not installed")
class TestTheReportOfTheDemo:
    @pytest.fixture
    def document(self, demo_run: subprocess.CompletedProcess[str], report: Path) -> dict[str, Any]:
        assert demo_run.returncode == 0, demo_run.stderr
        found: dict[str, Any] = read(report)
        return found

    def test_has_the_verdict_of_the_last_line(
        self, document: dict[str, Any], demo_run: subprocess.CompletedProcess[str]
    ) -> None:
        assert document["verdict"]["line"] == demo_run.stdout.splitlines()[-1]
        assert document["verdict"]["reasons"] == []

    def test_says_how_long_each_adapter_took_to_swap(self, document: dict[str, Any]) -> None:
        assert [a["name"] for a in document["adapters"]] == list(ADAPTERS)
        assert all(a["swap_seconds"] > 0 and a["swap_samples"] > 10 for a in document["adapters"])

    def test_digests_are_those_of_sha256sum(self, document: dict[str, Any]) -> None:
        digests = [a["digest"] for a in document["adapters"]]
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
        assert len(set(digests)) == len(ADAPTERS)

    def test_tells_every_recompile_with_a_sentence(self, document: dict[str, Any]) -> None:
        again = [c for c in document["compiles"] if c["kind"] == "recompile"]
        assert [c["kind"] for c in document["compiles"]].count("first") >= 1
        assert again, "the control's recompile is missing"
        assert all(c["sentence"] and c["wanted"] for c in again)

    def test_names_the_environment(self, document: dict[str, Any]) -> None:
        (environment,) = document["environment"]
        assert environment["backend"] == "eager"
        assert {"torch", "peft", "transformers", "device", "dtype", "inputs"} <= environment.keys()

    def test_has_the_other_two_files(self, document: dict[str, Any], report: Path) -> None:
        assert document["tests"]
        assert (report / "report.html").read_text(encoding="utf-8").count("<svg") == 3
        root = ET.parse(report / "junit.xml").getroot()  # noqa: S314  (our own file)
        cases = root.findall(".//testcase")
        assert len(cases) == len(document["tests"])


class TestCallsThatCannotBeCarriedOut:
    def test_no_arguments(self) -> None:
        ended = verify()
        assert ended.returncode == 2
        assert "--demo" in ended.stderr

    def test_adapters_without_a_base_model(self, demo: tuple[Path, list[Path]]) -> None:
        ended = verify(*demo[1])
        assert ended.returncode == 2
        assert "--base" in ended.stderr

    def test_a_base_model_that_does_not_exist(self, demo: tuple[Path, list[Path]]) -> None:
        ended = verify(*demo[1], "--base", "no/such/folder")
        assert ended.returncode == 2
        assert "no/such/folder" in ended.stderr

    def test_a_base_model_without_a_configuration(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        ended = verify(*demo[1], "--base", tmp_path)
        assert ended.returncode == 2
        assert "no config.json" in ended.stderr

    def test_a_base_model_without_weights_is_said_once(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        shutil.copy(demo[0] / "config.json", tmp_path)
        ended = verify(*demo[1], "--base", tmp_path, "--no-timing", "--json")
        assert ended.returncode == 2
        assert len(ended.stderr.splitlines()) == 1
        assert "nothing was verified: ReferenceSubject cannot be brought up" in ended.stderr
        assert "model.safetensors" in ended.stderr

    def test_a_subject_that_cannot_be_found_is_said_once(
        self, demo: tuple[Path, list[Path]]
    ) -> None:
        ended = verify(*demo[1], "--base", demo[0], "--subject", "none.py:Mine", "--json")
        assert ended.returncode == 2
        assert len(ended.stderr.splitlines()) == 1
        assert "there is no file" in ended.stderr

    def test_a_pattern_that_matches_nothing(self, demo: tuple[Path, list[Path]]) -> None:
        ended = verify("none/*", "--base", demo[0])
        assert ended.returncode == 2
        assert ended.stderr == "hotswap verify: no folder matches 'none/*'\n"

    def test_a_missing_extra_is_one_sentence_with_the_command(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "xdist", None)
        assert main(["verify", "--demo", "--", "-n", "2"]) == 2
        assert capsys.readouterr().err == (
            "hotswap verify: -n needs pytest-xdist, which is not installed; "
            "run: pip install 'pytest-hotswap[xdist]'\n"
        )

    def test_two_adapters_of_one_name(self, demo: tuple[Path, list[Path]]) -> None:
        ended = verify("here/legal", "there/legal", "--base", demo[0])
        assert ended.returncode == 2
        assert "here/legal and there/legal have the same name" in ended.stderr

    def test_a_demo_of_ones_own_adapters(self, demo: tuple[Path, list[Path]]) -> None:
        assert verify("--demo", *demo[1]).returncode == 2

    def test_a_selection_of_no_law_verifies_nothing(self, demo: tuple[Path, list[Path]]) -> None:
        ended = verify(*demo[1], "--base", demo[0], "--no-timing", "--", "-k", "nosuchlaw")
        assert ended.returncode == 2
        assert "nothing was verified" in ended.stderr

    def test_options_that_pytest_does_not_know_are_shown(
        self, demo: tuple[Path, list[Path]]
    ) -> None:
        ended = verify(*demo[1], "--base", demo[0], "--no-timing", "--", "--no-such-option")
        assert ended.returncode == 2
        assert "--no-such-option" in ended.stderr


class TestNotReady:
    def test_a_demo_that_cannot_be_written_is_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ended = Ended(1, "Traceback (most recent call last):\nOSError: No space left\n", False)
        monkeypatch.setattr("hotswap.cli.verify.child.run", lambda *_: ended)
        assert main(["verify", "--demo"]) == 1
        expected = "hotswap: the demo could not be written: OSError: No space left\n"
        assert capsys.readouterr().err == expected

    def test_a_truncated_adapter_is_refused_and_the_others_go_on(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(demo[1][0], broken)
        weights = broken / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        words = ["--no-timing", "--json", "--", "-k", "refused"]
        ended = verify(demo[1][1], broken, "--base", demo[0], *words)
        assert ended.returncode == 1
        assert "HSW005" in ended.stderr
        assert str(broken) in ended.stderr
        document = json.loads(ended.stdout)
        line = "not ready: 1 adapter refused, broken (HSW005); the others: incomplete: "
        assert document["verdict"]["line"].startswith(line)
        assert [a["verdict"] for a in document["adapters"]] == ["not run", "refused"]
        (test,) = document["tests"]
        assert (test["law"], test["outcome"]) == ("swap-atomic", "passed")

    def test_nan_is_known_from_the_file_and_nobodys_neighbour(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        broken = _changed(demo[1][0], tmp_path / "aaa", nan=True)
        words = ["--no-timing", "--json", "--", "-k", "equals_load or refused"]
        ended = verify(broken, *demo[1][1:3], "--base", demo[0], *words)
        document = json.loads(ended.stdout)
        assert ended.returncode == 1
        assert "HSW110" in ended.stderr
        verdicts = [a["verdict"] for a in document["adapters"]]
        assert verdicts == ["refused", "passed", "passed"]
        assert {test["outcome"] for test in document["tests"]} <= {"passed", "skipped"}

    def test_what_check_warns_of_is_a_warning(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        odd = _changed(demo[1][0], tmp_path / "odd", rank_pattern={"no_such_module": 9})
        words = ["--no-timing", "--json", "--fail-on", "warning", "--", "-k", "idempotent"]
        ended = verify(odd, "--base", demo[0], *words)
        (adapter,) = json.loads(ended.stdout)["adapters"]
        assert [found["code"] for found in adapter["warnings"]] == ["HSW111"]
        assert adapter["findings"] == []
        assert any(
            "odd: HSW111 " in text for text in json.loads(ended.stdout)["verdict"]["warnings"]
        )

    def test_a_subject_with_adapters_of_its_own_is_described_like_any(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        fleet = tmp_path / "fleet"
        for adapter in demo[1]:
            shutil.copytree(adapter, fleet / adapter.name)
        _changed(demo[1][0], fleet / "aaa", nan=True)
        (tmp_path / "mine.py").write_text(
            "from pytest_hotswap import ReferenceSubject\n"
            "class Mine(ReferenceSubject):\n"
            f"    base = {str(demo[0])!r}\n"
            "    adapters = 'fleet/*'\n"
        )
        words = ["--subject", f"{tmp_path / 'mine.py'}:Mine", "--json"]
        ended = verify(*words, "--", "-k", "equals_load or zero_recompiles")
        document = json.loads(ended.stdout)
        assert document["plan"]["target_rank"] == 16
        assert [a["name"] for a in document["adapters"]] == ["aaa", *ADAPTERS]
        assert [a["verdict"] for a in document["adapters"]] == ["refused", *["passed"] * 4]
        assert all(a["ranks"] and a["bytes"] and a["digest"] for a in document["adapters"])
        assert all(a["swap_seconds"] for a in document["adapters"][1:])
        assert document["request"]["backend"] == "eager"
        assert document["verdict"]["warnings"] == []

    def test_a_head_in_one_adapter_only_is_supported(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        headed = tmp_path / "headed"
        generator = torch.Generator().manual_seed(7)
        options = {"target_modules": ["q_proj", "v_proj", "down_proj"], "modules_to_save": ["norm"]}
        write_adapter(pretrained(demo[0]), headed, generator, 0.1, r=4, **options)
        words = ["--no-timing", "--", "-k", "equals_load or covers or atomic"]
        ended = verify(headed, *demo[1][:2], "--base", demo[0], *words)
        assert "failed" not in ended.stdout.splitlines()[-1], ended.stdout

    def test_two_damaged_adapters_are_two_lines(
        self, demo: tuple[Path, list[Path]], tmp_path: Path
    ) -> None:
        ended = verify(tmp_path / "a", tmp_path / "b", "--base", demo[0])
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 2

    def test_pefts_own_swap_breaks_two_laws(self, demo: tuple[Path, list[Path]]) -> None:
        subject = "pytest_hotswap.subjects.peft:PeftSubject"
        words = ["--subject", subject, "--no-timing", "--", "-k", "isolated or atomic"]
        ended = verify(*demo[1], "--base", demo[0], *words)
        assert ended.returncode == 1
        assert ended.stdout.splitlines()[-1] == "not ready: swap-isolated, swap-atomic failed"
        assert re.search(
            r"swap-isolated: while another adapter is active: \S+q_proj\.lora_A\.default2",
            ended.stdout,
        )
        assert re.search(r"swap-atomic: .*\S+proj\.lora_", ended.stdout)

    def test_laws_that_did_not_run_make_it_incomplete(self, demo: tuple[Path, list[Path]]) -> None:
        ended = verify(
            *demo[1], "--base", demo[0], "--no-timing", "--", "-k", "preparation_idempotent"
        )
        last = ended.stdout.splitlines()[-1]
        assert ended.returncode == 1
        assert last.startswith("incomplete: ")
        assert "swap-equals-load" in last


class TestOptions:
    @pytest.fixture(scope="class")
    @classmethod
    def document(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """One run with everything that changes how the model is run."""
        folder = tmp_path_factory.mktemp("options")
        base, adapters = write_demo(folder)
        tokens = torch.arange(12).reshape(2, 6)
        save_file({"input_ids": tokens}, str(folder / "inputs.safetensors"))
        plan([adapters[0], adapters[2]]).save(folder / "plan.json")
        words = ["--device", "cpu", "--dtype", "bfloat16", "--regional", "--shard", "1/2"]
        words += ["--inputs", folder / "inputs.safetensors", "--plan", folder / "plan.json"]
        words += ["--report", folder / "report"] if HAS_EXTRA else []
        words += ["-n", "1", "--no-timing", "--json", "--", "-k", "equals_load or in_place"]
        ended = verify(*adapters, "--base", base, *words)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        found: dict[str, Any] = json.loads(ended.stdout)
        if HAS_EXTRA:  # written by a worker of pytest-xdist and the process that started it
            assert json.loads((folder / "report" / "report.json").read_text()) == found
            assert "swap-equals-load" in (folder / "report" / "report.html").read_text()
            assert (folder / "report" / "junit.xml").is_file()
        return found

    def test_the_dtype_and_the_device_are_those_asked_for(self, document: dict[str, Any]) -> None:
        (environment,) = document["environment"]
        assert (environment["dtype"], environment["device"]) == ("bfloat16", "cpu")

    def test_blocks_are_compiled_one_by_one(self, document: dict[str, Any]) -> None:
        regions = [c["region"] for c in document["compiles"] if c["kind"] == "first"]
        assert len(regions) == 4  # two of the model, two of an unprepared one

    def test_the_shard_has_its_part_of_the_bytes_and_the_plan_of_all(
        self, document: dict[str, Any]
    ) -> None:
        assert [a["name"] for a in document["adapters"]] == ["poetic"]
        assert document["plan"]["target_rank"] == 16
        assert [a["verdict"] for a in document["adapters"]] == ["passed"]

    def test_tests_that_ran_passed_and_the_rest_is_not_run(self, document: dict[str, Any]) -> None:
        assert {test["outcome"] for test in document["tests"]} == {"passed"}
        assert document["verdict"]["outcome"] == "incomplete"

    def test_what_the_time_budget_does_not_reach_is_not_run(
        self, demo: tuple[Path, list[Path]]
    ) -> None:
        words = ["--time-budget", "0.1s", "--json"]
        ended = verify(demo[1][0], "--base", demo[0], *words)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        document = json.loads(ended.stdout)
        assert {law["state"] for law in document["laws"]} == {"not run"}
        assert document["verdict"]["outcome"] == "incomplete"
        assert document["timing"]["error"] == "the time budget was used up"

    @pytest.mark.parametrize("outcome", ["ready", "not ready", "incomplete"])
    def test_the_exit_code_is_that_of_the_outcome(self, outcome: str) -> None:
        assert exit_code({"verdict": {"outcome": outcome}}) == (outcome != "ready")


def _changed(source: Path, folder: Path, *, nan: bool = False, **config: Any) -> Path:
    """Copy an adapter, with a NaN in its weights or other keys in its config."""
    shutil.copytree(source, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    if nan:
        next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(told | config), encoding="utf-8")
    return folder


@pytest.mark.skipif(os.name != "posix", reason="signals a process group")
@pytest.mark.skipif(not HAS_EXTRA, reason="the extra 'report' is not installed")
def test_ctrl_c_prints_what_was_found_until_then(
    demo: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    started = tmp_path / "started"
    (tmp_path / "announce.py").write_text(
        "import pathlib\n"
        "def pytest_runtest_logfinish(nodeid, location):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
    )
    words = [*demo[1], "--base", demo[0], "--report", tmp_path / "out", "--", "-p", "announce"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    while process.poll() is None and not started.exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "\nLaws\n" in out
    line = out.splitlines()[-1]
    assert line.startswith("partial, interrupted by Ctrl-C: incomplete: ")
    document = read(tmp_path / "out")
    assert document["verdict"]["partial"]
    assert document["verdict"]["line"] == line
    assert document["timing"] is None
    assert "(partial report)" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
