"""Checks as JUnit XML, which CI servers show: one suite per column, one test per check; unsupported is skipped."""

from __future__ import annotations

import re
from itertools import groupby
from xml.etree import ElementTree

from conformance.checks.check import Check
from conformance.report.reproduce import command

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # of XML 1.0, escaped or not


def junit(checks: list[Check], arrays: str | None = None) -> bytes:
    """A document in UTF-8. arrays: as given to `gqa conform`, for the commands."""
    suites = ElementTree.Element("testsuites", {"name": "gqa conform"} | _counts(checks))
    ordered = sorted(checks, key=lambda check: check.column)
    for column, found in groupby(ordered, key=lambda check: check.column):
        own = list(found)
        suite = ElementTree.SubElement(suites, "testsuite", {"name": _text(column)} | _counts(own))
        for check in own:
            suite.append(_case(check, arrays))
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True))


def _counts(checks: list[Check]) -> dict[str, str]:
    verdicts = [check.verdict for check in checks]
    return {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count("fail")),
        "errors": "0",
        "skipped": str(verdicts.count("unsupported")),
    }


def _case(check: Check, arrays: str | None) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", classname=_text(f"{check.column}.{check.row}"), name=_text(f"{check.case}, {check.quantity}")
    )
    if check.verdict == "fail":
        failure = ElementTree.SubElement(case, "failure", message=_text(check.reason), type=_text(check.quantity))
        named = [f"reproduced by: {check.explanation}"] if check.explanation else []
        failure.text = _text("\n".join([check.reason, *named, command(check, arrays)]))
    elif check.verdict == "unsupported":
        ElementTree.SubElement(case, "skipped", message=_text(check.reason))
    return case


def _text(words: str) -> str:
    """Characters that XML cannot hold become a question mark: what a target raises may hold anything."""
    return NOT_XML.sub("?", words)
