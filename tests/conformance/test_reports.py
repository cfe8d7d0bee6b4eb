"""The reports: JUnit XML that any parser reads, and a page that a real browser shows, filters and keeps harmless."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from xml.dom import minidom

import numpy as np
import pytest
from typer.testing import CliRunner

from conformance.checks.check import Check
from conformance.checks.judge import Options
from conformance.report.evidence import MOST, Evidence, evidence
from conformance.report.junit import junit
from conformance.report.page import page
from conformance.report.picture import Place
from conformance.report.reproduce import command
from gqa import app

pytestmark = pytest.mark.no_shape_checks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \x1b[31m\x00"
)
INFINITE = float("inf")
CHECKS = [
    Check("GQA 6 over 2", "GQA 6 over 2 / plain", "mine:a, float64", "output", 1.25, "pass"),
    Check("GQA 6 over 2", "GQA 6 over 2 / plain", "mine:a, float64", "weights", 0.0, "unsupported", "returns none"),
    Check("GQA 6 over 2", "GQA 6 over 2 / plain", "mine:b, float32", "output", 3e6, "fail", "error 0.36", "scale: 1"),
    Check("GQA 6 over 2", "GQA 6 over 2 / causal", "mine:a, float64", "output", INFINITE, "fail", HOSTILE),
    Check("GQA 6 over 2", "GQA 6 over 2 / causal", "mine:b, float32", "output", 0.5, "pass"),
    Check("MQA 5", "MQA 5 / window", "mine:a, float64", "output", 0.0, "unsupported", "takes no window"),
    Check("MQA 5", "MQA 5 / window", "mine:b, float32", "output", 0.75, "pass"),
]
RIGHT, WRONG = np.array([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]]), np.array([[0.5, -0.5, np.nan], [0.25, 0.75, 0.0]])
DRAWN = [
    Evidence("GQA 6 over 2 / plain", "mine:b, float32", Place("weights", "BNTS", (1, 4, 0, 1), RIGHT, WRONG)),
]


# --- JUnit -----------------------------------------------------------------------------------------------------------


def test_junit_says_what_passed_failed_and_was_skipped():
    document = minidom.parseString(junit(CHECKS))  # expat
    [root] = document.getElementsByTagName("testsuites")
    assert [root.getAttribute(name) for name in ("tests", "failures", "errors", "skipped")] == ["7", "2", "0", "2"]
    suites = {suite.getAttribute("name"): suite for suite in document.getElementsByTagName("testsuite")}
    assert set(suites) == {"mine:a, float64", "mine:b, float32"}
    for suite in suites.values():
        assert int(suite.getAttribute("tests")) == len(suite.getElementsByTagName("testcase"))
        assert int(suite.getAttribute("failures")) == len(suite.getElementsByTagName("failure"))
        assert int(suite.getAttribute("skipped")) == len(suite.getElementsByTagName("skipped"))
    failure = suites["mine:b, float32"].getElementsByTagName("failure")[0]
    assert failure.getAttribute("message") == "error 0.36"
    assert failure.firstChild.data.splitlines()[1:] == [
        "reproduced by: scale: 1",
        "gqa trace numpy mine:b --case 'GQA 6 over 2 / plain' --dtype float32",
    ]
    assert failure.parentNode.getAttribute("name") == "GQA 6 over 2 / plain, output"


def test_junit_holds_whatever_a_target_raises():
    document = minidom.parseString(junit(CHECKS))
    messages = [failure.getAttribute("message") for failure in document.getElementsByTagName("failure")]
    assert HOSTILE.replace("\x1b", "?").replace("\x00", "?") in messages


# --- the page, as text ------------------------------------------------------------------------------------------------


class Document(HTMLParser):
    """Start tags with their attributes, and the text in each script."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def text() -> str:
    return page(CHECKS, "gqa <conform>", evidence=DRAWN, not_run=["target mlx: not installed"])


def test_the_page_needs_no_network(text):
    document = Document(text)
    assert not [attributes for _, attributes in document.tags if {"src", "href"} & set(attributes)]
    addresses = set(re.findall(r"https?://[^\"' ]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "@import" not in text
    assert "url(" not in text
    policy = next(a["content"] for _, a in document.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_page_holds_every_check(text):
    document = Document(text)
    assert len(document.scripts) == 2  # what a target raises adds none
    data = json.loads(document.scripts[0])
    assert data["counts"] == {"pass": 3, "fail": 2, "unsupported": 2}
    found = {
        (data["rows"][r]["case"], "{name}, {dtype}".format(**data["columns"][c]), *rest)
        for r, c, *rest in data["checks"]
    }
    assert found == {
        (c.case, c.column, c.quantity, c.verdict, None if c.error == INFINITE else c.error, c.reason, c.explanation)
        for c in CHECKS
    }
    assert data["evidence"][0]["b"] == [[0.5, -0.5, "nan"], [0.25, 0.75, 0.0]]
    assert data["left_out"] == ["target mlx: not installed"]
    assert data["rows"][2]["guards"]


# --- the page, in a browser -------------------------------------------------------------------------------------------


@pytest.fixture
def browser(text, tmp_path):
    """The page's elements in Chromium after a script has run in it."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")

    def shown(script: str = "", fragment: str = "", size: str = "1400,900") -> str:
        path = tmp_path / "page.html"
        path.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={size}",
                "--dump-dom",
                f"{path.as_uri()}{fragment}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    return shown


def cells(dom: str) -> dict[str, int]:
    return {
        verdict: len(re.findall(rf'<button type="button" class="{verdict}"', dom))
        for verdict in ("pass", "fail", "unsupported")
    }


def test_the_browser_draws_the_matrix_and_runs_nothing_of_the_targets(browser):
    dom = browser()
    assert cells(dom) == {"pass": 3, "fail": 2, "unsupported": 1}  # a cell is the worst of its checks, pass before none
    assert "<title>gqa &lt;conform&gt;</title>" in dom
    assert "3 of 3 cases" in dom
    assert 'aria-label="GQA 6 over 2 / causal, mine:a, float64: fail ∞"' in dom
    assert "left out: target mlx: not installed" in dom
    assert "<title>owned" not in dom
    assert "<img" not in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)


def test_a_link_opens_a_cell_with_its_numbers_command_and_pictures(browser):
    dom = browser(fragment="#GQA%206%20over%202%20%2F%20plain%2C%20mine%3Ab%2C%20float32")
    panel = dom[dom.index('<aside id="detail"') : dom.index("</aside>")]
    assert "hidden" not in panel.split(">")[0]
    assert "error 3.0e6 eps" in panel
    assert "reproduced by <b>scale: 1</b>" in panel
    assert "gqa trace numpy mine:b --case 'GQA 6 over 2 / plain' --dtype float32" in panel
    assert "weights, batch row 1, head 4" in panel
    maps = panel.split("<svg")[1:]
    assert [one.count("<rect") for one in maps] == [6, 6, 6]
    assert [one.count('class="nan"') for one in maps] == [0, 1, 1]
    assert [one.count('class="less"') for one in maps] == [0, 1, 2]  # 0.5 - 1 and -0.5 - 0
    assert "T 0, S 1: -0.5" in maps[1]


def test_causes_are_on_top_and_beside_each_row_without_a_click(browser):
    dom = browser()
    shown = dom[dom.index('<section id="causes"') : dom.index("</section>")]
    assert "hidden" not in shown.split(">")[0]
    assert "<b>1</b><span>scale: 1</span>" in shown
    assert '<span class="expected">SPEC 2: H ** -0.5</span>' in shown
    assert '<td class="cause">scale: 1</td>' in dom
    assert 'id="legend"' in dom
    chosen = browser("document.querySelectorAll('#cause-list button')[0].click();")
    assert 'aria-pressed="true"' in chosen
    assert "1 of 3 cases" in chosen


def test_pictures_are_titled_with_the_diagnosis_and_have_whole_ticks(browser):
    dom = browser(fragment="#GQA%206%20over%202%20%2F%20plain%2C%20mine%3Ab%2C%20float32")
    panel = dom[dom.index('<aside id="detail"') : dom.index("</aside>")]
    assert "<h3>scale: 1: weights, batch row 1, head 4</h3>" in panel
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", panel.split("<svg")[1])
    assert ticks == ["0", "1", "2", "0", "1", "S", "T"]


def test_hostile_text_is_shown_as_text(browser):
    dom = browser(fragment="#GQA%206%20over%202%20%2F%20causal%2C%20mine%3Aa%2C%20float64")
    panel = dom[dom.index('<aside id="detail"') : dom.index("</aside>")]
    assert "&lt;img src=x onerror=" in panel
    assert "<img" not in panel
    assert "<title>gqa &lt;conform&gt;</title>" in dom


@pytest.mark.parametrize(
    ("field", "value", "rows", "columns"),
    [
        ("verdict", "fail", {"plain", "causal"}, 2),
        ("verdict", "unsupported", {"window"}, 2),
        ("feature", "causal", {"causal"}, 2),
        ("text", "takes no WINDOW", {"window"}, 2),
        ("text", "scale: 1", {"plain"}, 2),
        ("target", "mine:b", {"plain", "causal", "window"}, 1),
        ("text", "nothing has this", set(), 2),
    ],
)
def test_filters(browser, field, value, rows, columns):
    script = f"""
    const field = document.getElementById({field!r});
    field.value = {value!r};
    field.dispatchEvent(new Event("input", {{ bubbles: true }}));
    const shown = query => [...document.querySelectorAll(query)].filter(one => !one.hidden);
    document.body.append(Object.assign(document.createElement("pre"), {{ id: "seen", textContent: JSON.stringify({{
      rows: shown("tr[data-row]").map(line => line.firstChild.textContent), columns: shown("th.column").length,
    }}) }}));
    """
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', browser(script))[1])
    assert set(seen["rows"]) == rows
    assert seen["columns"] == columns


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_does_not_scroll_sideways(browser, width):
    """The matrix does, in its own box. A window of Chromium's is at least 500 wide, a frame is not."""
    script = f"""
    if (window === top) {{
      const frame = document.createElement("iframe");
      frame.style.cssText = "width:{width}px;height:800px;border:0;position:absolute;left:0;top:0";
      frame.srcdoc = document.documentElement.outerHTML.replaceAll(" hidden", "");
      document.body.append(frame);
    }} else {{
      const root = document.documentElement;
      top.document.title = [window.innerWidth, root.clientWidth, root.scrollWidth].join(" ");
    }}
    """
    title = re.search(r"<title>(.*?)</title>", browser(script))[1]
    frame, inner, needed = map(int, title.split())
    assert frame == width
    assert needed <= inner


# --- commands and pictures of real targets ---------------------------------------------------------------------------


def failed(case: str, reason: str = "error 0.5") -> Check:
    return Check(case.split(" / ")[0], case, "numpy_kernels:top_left, float64", "output", 1e15, "fail", reason)


def test_the_command_of_a_cell_finds_the_same(sample_targets):
    asked = shlex.split(command(failed("MQA 5 / causal"), "numpy"))
    assert asked[:2] == ["gqa", "trace"]
    result = CliRunner().invoke(app, asked[1:])
    assert result.exit_code == 1, result.output
    assert "first stage that differs: MQA 5 / causal, weights" in result.output
    assert "numpy_kernels:top_left computes alignment: top-left" in result.output


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("torch to jax, float32", "gqa trace torch jax --case 'MHA 3 / square' --dtype float32"),
        ("jax kernel, float64", "gqa trace numpy jax --case 'MHA 3 / square' --dtype float64 --kernel"),
    ],
)
def test_the_command_of_a_backends_cell(column, words):
    assert command(Check("MHA 3", "MHA 3 / square", column, "output", 0.0, "pass")) == words


def test_evidence_is_what_the_target_gave_beside_what_is_right(sample_targets):
    asked = [failed("MQA 5 / causal"), failed("MQA 5 / plain", "raised ValueError: so there are no arrays")]
    [found] = evidence("numpy_kernels:top_left", Options("numpy", limit=60.0), asked)
    assert (found.case, found.shown.stage) == ("MQA 5 / causal", "weights")
    right, given = found.shown.a, found.shown.b
    T, S = right.shape
    assert S > T
    assert np.array_equal(right > 0, np.tri(T, S, S - T, dtype=bool))
    assert np.array_equal(given > 0, np.tri(T, S, dtype=bool))
    assert np.allclose(given.sum(axis=1), 1)


def test_a_target_that_fails_everywhere_is_drawn_for_each_feature_first():
    from conformance.report.evidence import _spread

    cases = [(f"{row} / {feature}", "x, float64") for row in ("MHA 3", "MQA 5") for feature in ("plain", "causal")]
    assert [case for case, _ in _spread(cases)] == [
        "MHA 3 / plain",
        "MHA 3 / causal",
        "MQA 5 / plain",
        "MQA 5 / causal",
    ][:4]
    assert MOST >= 20


def test_a_folder_that_is_not_there_is_told_before_the_run(sample_targets):
    for option in ("--junit", "--html", "--json"):
        result = CliRunner().invoke(app, ["conform", "--target", "numpy_kernels:top_left", option, "nowhere/file"])
        assert result.exit_code == 2
        assert result.output.strip() == f"{option}: there is no folder nowhere"


def test_a_summary_counts_each_cause_and_splits_no_name_that_has_a_plus():
    from rich.console import Console

    from conformance.checks.check import Check
    from conformance.report.tables import targets

    def failed(explanation="", row="GQA 6 over 2", quantity="output", reason="error"):
        return Check(row, "a case", "somebody, float32", quantity, 1.0, "fail", reason, explanation)

    checks = [
        failed("alignment: top-left + causal window of W: counts neighbours: W + 1 keys"),
        failed("alignment: top-left"),
        failed(row="caches"),
        failed(quantity="gradients"),
        failed(reason="raised ValueError: no"),
    ]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(targets({"somebody": checks}))
    text = console.export_text()
    for line in (
        "alignment: top-left (2)",
        "causal window of W: counts neighbours: W + 1 keys (1)",
        "caches (1)",
        "gradients (1)",
        "raised ValueError (1)",
    ):
        assert line in text
