"""The document as JUnit XML: a test case for each test that ran and for each adapter that is refused."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from hotswap.findings import printable


def junit(document: dict[str, Any]) -> str:
    """Render a document; what did not run is a skipped test case."""
    suite = Element("testsuite", name="hotswap verify", timestamp=document["created"])
    for adapter in document["adapters"]:
        for finding in adapter["findings"]:
            case = SubElement(
                suite, "testcase", classname="adapters", name=printable(adapter["name"]), time="0"
            )
            words = f"{finding['code']} {finding['message']}; {finding['remedy']}"
            SubElement(case, "failure", message=printable(words))
    for test in document["tests"]:
        classname, _, name = printable(str(test["nodeid"])).rpartition("::")
        seconds = f"{float(test.get('seconds') or 0):.6f}"
        case = SubElement(suite, "testcase", classname=classname, name=name, time=seconds)
        message = "\n".join(map(printable, str(test.get("message") or "").split("\n")))
        if test["outcome"] == "failed":
            SubElement(case, "failure", message=message)
        elif test["outcome"] != "passed":
            SubElement(case, "skipped", message=message)
    for kind, key in (("failure", "failures"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("tests", str(len(suite)))
    suite.set("errors", "0")
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return "<?xml version='1.0' encoding='utf-8'?>\n" + tostring(root, encoding="unicode") + "\n"
