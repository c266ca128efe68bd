"""The report document: what a run gathered, derived, judged, merged, and as JUnit XML."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from hotswap.errors import HotswapError
from hotswap.report.document import derive, dumps, merge, percentiles, read
from hotswap.report.github import github
from hotswap.report.junit import junit
from hotswap.report.laws import REMEDIES
from hotswap.report.text import adapter_table, law_table
from tests.support.reports import FINDING, adapter, gathered, record, records


def shards(count: int = 2) -> list[dict[str, Any]]:
    fleet = gathered()["adapters"]
    return [
        derive(
            gathered(
                adapters=fleet[part::count],
                tests=records([a["name"] for a in fleet[part::count]]),
                shards=[{"index": part + 1, "count": count}],
            )
        )
        for part in range(count)
    ]


OTHER = {"cause": "other model"}


class TestTheVerdict:
    def test_a_fleet_without_a_fault_is_ready(self) -> None:
        verdict = derive(gathered())["verdict"]
        line = "ready to hot-swap: 3 adapters, target rank 12, 0 recompiles in 6 swaps"
        assert (verdict.pop("outcome"), verdict.pop("line")) == ("ready", line)
        assert verdict == {"partial": False, "reasons": [], "warnings": []}

    def test_a_refused_adapter_is_said_first_and_the_others_are_judged(self) -> None:
        fleet = [*gathered()["adapters"], adapter("broken", 4, FINDING)]
        fleet[-1]["findings"] = [FINDING | {"where": "fleet/broken::q_proj.lora_A.weight"}]
        document = derive(gathered(adapters=fleet))
        told = document["verdict"]["reasons"][0]["text"]
        assert told.startswith("HSW005 q_proj.lora_A.weight: the file is")
        assert document["verdict"]["line"] == (
            "not ready: 1 adapter refused, broken (HSW005); the others: ready to hot-swap: "
            "3 adapters, target rank 12, 0 recompiles in 6 swaps"
        )
        assert document["verdict"]["reasons"][0]["remedy"] == "save it again"
        verdicts = [a["verdict"] for a in document["adapters"]]
        assert verdicts == ["passed", "passed", "passed", "refused"]

    def test_a_failed_law_is_a_reason_and_fails_its_adapter(self) -> None:
        bad = record("swap-forgets", "failed", adapter="b", message="swap-forgets: of a, b remains")
        document = derive(gathered(tests=[*records("abc"), bad], exitstatus=1))
        assert document["verdict"]["outcome"] == "not ready"
        assert [r["text"] for r in document["verdict"]["reasons"]] == [
            "swap-forgets: of a, b remains"
        ]
        shown = law_table(document["laws"], document["verdict"]["reasons"]).splitlines()
        assert shown[-2:] == [
            "  swap-forgets: of a, b remains",
            f"    to do: {REMEDIES['swap-forgets']}",
        ]
        assert [(a["verdict"], a["reason"]) for a in document["adapters"]] == [
            ("passed", ""),
            ("failed", "of a, b remains"),
            ("passed", ""),
        ]

    def test_guilt_does_not_travel_to_an_adapter_that_is_right_alone(self) -> None:
        law, text = "swap-equals-load", "swap-equals-load: it raises"
        bad = [record(law, "failed", adapter=name, message=text) for name in "ab"]
        bad[0]["alone"] = True
        document = derive(gathered(tests=[*records("abc"), *bad], exitstatus=1))
        assert document["verdict"]["line"] == "not ready: swap-equals-load failed for b"
        assert [(a["verdict"], a["reason"]) for a in document["adapters"]] == [
            ("passed", "right alone, but beside another adapter: it raises"),
            ("failed", "it raises"),
            ("passed", ""),
        ]

    @pytest.mark.parametrize("level", ["error", "warning"])
    def test_the_last_line_is_ready_only_where_the_outcome_is(self, level: str) -> None:
        told = gathered(warnings=["the backend was aot_eager"])
        told["request"] |= {"fail_on": level}
        verdict = derive(told)["verdict"]
        assert verdict["outcome"] == ("ready" if level == "error" else "not ready")
        assert verdict["line"].startswith(verdict["outcome"])

    def test_an_interrupted_run_is_partial(self) -> None:
        told = gathered(tests=records("ab")[:5], exitstatus=None, interrupted=True)
        verdict = derive(told)["verdict"]
        assert verdict["partial"]
        assert verdict["line"].startswith("partial, interrupted by Ctrl-C: incomplete: ")

    def test_equal_weights_and_what_was_not_timed_are_warnings(self) -> None:
        fleet = gathered()["adapters"]
        fleet[2]["digest"] = fleet[0]["digest"]
        timing = {"rows": [], "samples": {}, "error": "no compiler"}
        warnings = derive(gathered(adapters=fleet, timing=timing))["verdict"]["warnings"]
        assert warnings == ["a, c have equal weights", "not timed: no compiler"]

    def test_what_check_warns_of_is_a_warning_of_the_adapter(self) -> None:
        told = gathered()
        told["adapters"][1]["warnings"].append(FINDING)
        document = derive(told)
        assert document["verdict"]["warnings"] == ["b: HSW005 the file is <b>truncated</b>"]
        assert (document["verdict"]["outcome"], document["adapters"][1]["verdict"]) == (
            "ready",
            "passed",
        )


class TestWhatIsDerived:
    def test_swap_times_are_medians_over_all_tests(self) -> None:
        found = derive(gathered())["adapters"]
        assert [a["swap_seconds"] for a in found] == pytest.approx([0.001, 0.002, 0.003])

    def test_compiles_are_in_order_and_those_of_controls_are_wanted(self) -> None:
        first, again = derive(gathered())["compiles"]
        assert (first["kind"], first["at"], first["wanted"]) == ("first", 0.0, True)
        assert (again["kind"], again["at"], again["wanted"]) == ("recompile", 10.0, True)

    def test_a_recompile_in_a_law_is_not_wanted(self) -> None:
        lines = records("abc")
        lines[-1]["role"] = "law"
        assert derive(gathered(tests=lines))["compiles"][1]["wanted"] is False

    @pytest.mark.parametrize(
        ("changed", "wanted"),
        [
            ({"provoked": True}, True),
            ({"provoked": False}, False),
            ({"sentence": "the first call of this Model, which shares its code", **OTHER}, True),
            ({"sentence": "its parameters were replaced", **OTHER}, False),
        ],
    )
    def test_a_recompile_that_the_suite_provokes_is_wanted(
        self, changed: dict[str, Any], wanted: bool
    ) -> None:
        lines = records("abc")
        lines[-1]["role"] = "law"
        (key,) = (key for key in lines[-1] if key.startswith("compiles_in_"))
        lines[-1][key] = json.dumps([one | changed for one in json.loads(lines[-1][key])])
        again = derive(gathered(tests=lines))["compiles"][-1]
        assert (again["kind"], again["wanted"], "provoked" in again) == ("recompile", wanted, False)

    def test_percentiles_lie_between_the_samples(self) -> None:
        found = percentiles([float(n) for n in range(101)])
        assert found == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
        assert percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}


class TestTheFile:
    def test_matches_its_schema(self) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        file = importlib.resources.files("hotswap.report").joinpath("report.schema.json")
        validator = jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))
        fleet = [*gathered()["adapters"], adapter("broken", 4, FINDING)]
        lines = [
            *records("abc"),
            record("swap-forgets", "failed", adapter="b", max_error=float("nan")),
        ]
        document = json.loads(dumps(derive(gathered(adapters=fleet, tests=lines))))
        assert [error.message for error in validator.iter_errors(document)] == []
        del document["verdict"]["line"]
        assert not validator.is_valid(document)

    def test_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        document = derive(gathered())
        (tmp_path / "report.json").write_text(dumps(document), encoding="utf-8")
        assert read(tmp_path) == read(tmp_path / "report.json") == document

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "cannot be read"),
            ("{", "is not JSON"),
            ("[]", "is not a report"),
            ('{"format": "hotswap-report", "version": 2}', "has version 2, this hotswap reads 1"),
        ],
    )
    def test_what_is_no_report_is_one_sentence(
        self, content: str | None, reason: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "report.json"
        if content is not None:
            file.write_text(content, encoding="utf-8")
        with pytest.raises(HotswapError, match=reason):
            read(file)


class TestShards:
    def test_merged_they_judge_as_one_run_does(self) -> None:
        whole, merged = derive(gathered()), merge(shards()[::-1])
        assert merged["verdict"] == whole["verdict"]
        assert sorted(a["name"] for a in merged["adapters"]) == ["a", "b", "c"]
        assert merged["swaps"] == whole["swaps"]

    def test_one_of_them_says_that_it_is_a_part(self) -> None:
        line = shards()[1]["verdict"]["line"]
        assert line.startswith("ready to hot-swap: 1 adapter, ")
        assert line.endswith(" (shard 2 of 2)")

    def test_one_that_is_missing_makes_the_whole_incomplete(self) -> None:
        verdict = merge([shards(3)[0], shards(3)[2]])["verdict"]
        assert verdict["outcome"] == "incomplete"
        assert verdict["line"] == "incomplete: the report of shard 2 is missing"

    def test_one_alone_is_incomplete(self) -> None:
        verdict = merge(shards()[:1])["verdict"]
        assert verdict["line"] == "incomplete: the report of shard 2 is missing"
        assert verdict["outcome"] == "incomplete"

    def test_the_whole_says_that_the_model_was_cut_too(self) -> None:
        some = shards()
        for each in some:
            each["request"]["cut"] = "verified on a small copy of Llama"
        verdict = merge(some)["verdict"]
        assert verdict["line"].endswith("; verified on a small copy of Llama")
        assert verdict["outcome"] == "ready"

    def test_adapters_that_no_shard_has_make_it_incomplete(self) -> None:
        first, second = shards()
        second["adapters"] = []
        assert merge([first, second])["verdict"]["line"] == (
            "incomplete: the reports are of 2 of 3 adapters"
        )

    def test_a_warning_fails_the_whole_where_that_is_asked_for(self) -> None:
        some = shards()
        some[0]["adapters"][0]["warnings"].append(FINDING)
        assert merge(some)["verdict"]["outcome"] == "ready"
        verdict = merge(some, fail_on="warning")["verdict"]
        assert verdict["outcome"] == "not ready"
        assert verdict["line"].startswith("not ready: --fail-on warning, and there is a: HSW005 ")

    def test_a_fault_in_one_is_a_fault_of_the_whole(self) -> None:
        first, second = shards()
        second["tests"].append(record("swap-forgets", "failed", adapter="b"))
        verdict = merge([first, second])["verdict"]
        assert verdict["line"] == "not ready: swap-forgets failed for b"

    def test_an_interrupted_one_makes_the_whole_partial(self) -> None:
        first, second = shards()
        assert merge([first, {**second, "interrupted": True}])["verdict"]["partial"]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"shards": []}, "not of a shard"),
            ({"shards": [{"index": 1, "count": 2}]}, "shard 1 is given twice"),
            ({"shards": [{"index": 2, "count": 3}]}, "different numbers of shards"),
            ({"plan": {"target_rank": 1}}, "different plans"),
            ({"request": {"backend": "inductor"}}, "different requests"),
            ({"fleet": {"adapters": 3, "digest": "other"}}, "different fleets"),
            ({"environment": [{"torch": "2.14.1"}]}, r"versions of torch \(2.13.0, 2.14.1\)"),
            ({"tests": None}, "lacks what reports of hotswap verify have"),
            ({"shards": [{}]}, "lacks what reports of hotswap verify have"),
        ],
    )
    def test_reports_that_do_not_belong_together_are_refused(
        self, change: dict[str, Any], reason: str
    ) -> None:
        first, second = shards()
        with pytest.raises(HotswapError, match=reason):
            merge([first, {**second, **change}])


def test_github_annotations_end_where_they_should() -> None:
    fleet = [*gathered()["adapters"], adapter("broken", 4, FINDING)]
    fleet[-1]["name"] = "b\n::error::x"
    bad = record("swap-forgets", "failed", message="two\nlines")
    told = gathered(adapters=fleet, tests=[*records("abc"), bad], warnings=["no compiler"])
    told["request"] |= {"command": "hotswap verify a"}
    lines = github(derive(told)).splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == [
        "::error",
        "::error",
        "::warning",
        "::error",
    ]
    assert "two%0Alines" in lines[1]
    assert lines[1].endswith("run just this law again: hotswap verify a -- -k swap_forgets")
    ready = github(derive(gathered())).splitlines()
    assert [line.split(" ", 1)[0] for line in ready] == ["::notice"]


def test_names_with_control_characters_are_harmless() -> None:
    fleet = [adapter("a\x1b[2J", 4), adapter("b\x01", 8)]
    names = [one["name"] for one in fleet]
    document = derive(gathered(adapters=fleet, tests=records(names)))
    ET.fromstring(junit(document))  # noqa: S314  (our own text)
    assert "\x1b" not in adapter_table(document["adapters"])


def test_junit_counts_failures_skips_and_refused_adapters() -> None:
    fleet = [*gathered()["adapters"], adapter("broken", 4, FINDING)]
    bad = record("swap-forgets", "failed", message="two\x00lines")
    lines = [*records("abc"), bad, record("rank-bound", "skipped", message="no GPU")]
    written = junit(derive(gathered(adapters=fleet, tests=lines)))
    suite = ET.fromstring(written)[0]  # noqa: S314  (our own text)
    assert (suite.get("failures"), suite.get("skipped")) == ("2", "1")
    assert suite.get("tests") == str(len(lines) + 1) == str(len(suite.findall("testcase")))
    messages = [found.get("message") for found in suite.iter("failure")]
    assert messages == ["HSW005 the file is <b>truncated</b>; save it again", "two\ufffdlines"]
