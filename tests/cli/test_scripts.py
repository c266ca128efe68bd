"""The scripts that a report brings: one for each law that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotswap.cli.verify.command import write_report
from hotswap.report.document import derive
from tests.support.reports import gathered, record


def test_each_law_that_failed_has_the_script_of_its_first_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    found = gathered()
    failed = [record("swap-forgets", "failed", script=text) for text in ("first()", "second()")]
    found["tests"] = [*found["tests"], *failed]
    (tmp_path / "reproduce-swap-atomic.py").write_text("of an earlier run")
    write_report(derive(found), tmp_path)
    (script,) = tmp_path.glob("*.py")
    assert (script.name, script.read_text()) == ("reproduce-swap-forgets.py", "first()")
    assert "junit.xml, reproduce-swap-forgets.py" in capsys.readouterr().err
