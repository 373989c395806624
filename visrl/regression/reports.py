"""Comparisons and findings as people and machines read them: terminal, Markdown, JSON, JUnit XML.

Names and texts come from models and files: control and format characters never reach a terminal, a page or XML (``plain``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree  # writes only: nothing is parsed here

from visrl.errors import UsageError, nearest
from visrl.evals.benchmarks import NEITHER_IS_BETTER
from visrl.evals.compare import Difference
from visrl.evals.gates import Finding, exit_code
from visrl.tables.formats import UNIT_SHOWN, Cell, Row, Table, plain
from visrl.tables.result_tables import change_shown, shown

FORMATS = ("rich", "md")
_DIGITS = {"percent": 1, "points": 1, "fraction": 3}
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "info": "dim"}
_MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "info": "·"}
_COLLAPSE = 8


def check_format(name: str) -> None:
    """Raises UsageError for an unknown ``--format``."""
    if name not in FORMATS:
        raise UsageError(f"--format: unknown {name!r}", nearest(name, FORMATS))


# --- compare


def change(before: float | None, after: float | None, delta: float | None, se: float | None, unit: str) -> str:
    """``71.2 → 72.9 (+1.7 ± 0.6)`` in the metric's own unit, as a suite's floors are; ± is one standard error."""
    if before is None or after is None or delta is None:
        return "—"
    digits = _DIGITS.get(unit, 3)
    error = "" if se is None else f" ± {se:.{digits}f}"
    return f"{before:.{digits}f} → {after:.{digits}f} ({delta:+.{digits}f}{error})"


def comparison_table(title: str, differences: Sequence[Difference], notes: Sequence[str]) -> Table:
    """A row per task and metric: the change, p, n, and how many samples score better, or worse, by that metric; the worst below.
    Of a metric of which neither more nor less is better, neither is said.
    """
    rows = []
    for d in differences:
        said = change_shown(d.before, d.after, d.delta, d.se, d.unit)
        unpaired = (
            f"{d.unpaired:,} more are not compared: no score in one of the runs, or in both" if d.unpaired else ""
        )
        texts = (said, UNIT_SHOWN[d.unit], _p(d.p))
        counts = (Cell((f"{d.n:,}",), unpaired), Cell((_flips(d),)))
        rows.append(Row(plain(f"{d.task} {d.metric.removeprefix('mme/')}"), (*(Cell((t,)) for t in texts), *counts)))
    columns = (("change ± SE", "change"), ("unit", "unit"), ("p", "p"), ("n", "n"), ("better/worse", "better/worse"))
    return Table(title, "task and metric", columns, tuple(rows), (*notes, *_worst(differences)))


def _flips(d: Difference) -> str:
    return "—" if d.metric in NEITHER_IS_BETTER else f"{d.fixed}/{d.broken}"


def _p(value: float | None) -> str:
    if value is None:
        return "—"
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _worst(differences: Sequence[Difference]) -> list[str]:
    """The worst flips of each task's first metric that has any."""
    seen: set[str] = set()
    lines = []
    for d in differences:
        if d.worst and d.task not in seen and d.metric not in NEITHER_IS_BETTER:
            seen.add(d.task)
            flips = ", ".join(
                plain(f"{flip.sample_id} ({shown(flip.before, d.unit)} → {shown(flip.after, d.unit)})", 60)
                for flip in d.worst
            )
            lines.append(f"worst of {d.task} {d.metric}: {flips}")
    return lines


# --- check


def summary(findings: Sequence[Finding]) -> str:
    """``12 pass, 1 fail: exit code 1``."""
    counts = {status: sum(f.status == status for f in findings) for status in _STYLES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{said}: exit code {exit_code(findings)}"


def _lines(findings: Sequence[Finding]) -> list[tuple[str, str, str, str]]:
    """(status, gate, name, text) per finding; a gate's many passes become one line."""
    lines: list[tuple[str, str, str, str]] = []
    for gate in dict.fromkeys(f.gate for f in findings):
        mine = [f for f in findings if f.gate == gate]
        passed = [f for f in mine if f.status == "pass"]
        if len(passed) > _COLLAPSE:
            n = sum(int(f.facts.get("n", 1)) for f in passed)
            lines.append(("pass", gate, f"{len(passed)} checks", f"{n} values as on file"))
            mine = [f for f in mine if f.status != "pass"]
        lines += [(f.status, gate, plain(f.name), _text(f)) for f in mine]
    return lines


def _text(finding: Finding) -> str:
    facts = finding.facts
    said = change(facts.get("before"), facts.get("after"), facts.get("delta"), facts.get("se"), facts.get("unit", ""))
    return plain(finding.reason if said == "—" else f"{said}: {finding.reason}", 400)


def to_rich(findings: Sequence[Finding], console: Any) -> None:
    """The table on a rich console, with details of what failed below."""
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, pad_edge=False)
    for title in ("", "gate", "what", "finding"):
        table.add_column(title, overflow="fold")
    for status, *texts in _lines(findings):
        table.add_row(Text(status, style=_STYLES[status]), *(Text(text) for text in texts))
    console.print(table)
    for finding in findings:
        if finding.status == "fail" and finding.detail:
            console.print(Text(f"\n{plain(finding.name)}", style="bold"))
            console.print(Text(_clean(finding.detail)))
    console.print(Text(summary(findings)))


def to_markdown(title: str, findings: Sequence[Finding]) -> str:
    """A summary for a pull request: a table, and details folded away."""
    out = [f"### {plain(title)}: {summary(findings)}", "", "| | gate | what | finding |", "|---|---|---|---|"]
    out += [f"| {_MARKS[s]} {s} | " + " | ".join(map(_md, texts)) + " |" for s, *texts in _lines(findings)]
    for finding in findings:
        if finding.status == "fail" and finding.detail:
            fence = "`" * max(4, _longest_run(finding.detail, "`") + 1)
            out += ["", f"<details><summary>{_md(plain(finding.name))}</summary>", "", f"{fence}diff"]
            out += [_clean(finding.detail), fence, "", "</details>"]
    return "\n".join(out) + "\n"


def _md(text: str) -> str:
    for old, new in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*")):
        text = text.replace(old, new)
    return text


def _longest_run(text: str, character: str) -> int:
    best = run = 0
    for c in text:
        run = run + 1 if c == character else 0
        best = max(best, run)
    return best


def _clean(text: str, lines: int = 60) -> str:
    """A text of several lines, each cleaned, the rest counted."""
    rows = text.split("\n")
    more = [f"… {len(rows) - lines} more lines"] if len(rows) > lines else []
    return "\n".join([*(plain(row, 2000) if row.strip() else row for row in rows[:lines]), *more])


def to_json(suite: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """For machines: every finding whole, the counts and the exit code."""
    counts = {status: sum(f.status == status for f in findings) for status in _STYLES}
    return {
        "suite": suite,
        "exit_code": exit_code(findings),
        "counts": counts,
        "findings": [asdict(f) for f in findings],
    }


def to_junit(suite: str, findings: Sequence[Finding]) -> str:
    """JUnit XML: a failed finding is a failure, an inconclusive one an error, information is skipped."""
    statuses = [f.status for f in findings]
    counts = {"tests": len(findings), "failures": statuses.count("fail"), "errors": statuses.count("inconclusive")}
    attributes = {name: str(count) for name, count in {**counts, "skipped": statuses.count("info")}.items()}
    root = ElementTree.Element("testsuites")
    group = ElementTree.SubElement(root, "testsuite", {"name": f"visrl-eval check {plain(suite)}", **attributes})
    tags = {"fail": "failure", "inconclusive": "error", "info": "skipped"}
    for finding in findings:
        case = ElementTree.SubElement(group, "testcase", classname=finding.gate, name=plain(finding.name, 200))
        if finding.status in tags:
            ElementTree.SubElement(case, tags[finding.status], message=_text(finding)).text = _clean(finding.detail)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
