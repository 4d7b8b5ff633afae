"""The page of all published claims: one HTML file that needs no network and no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from drawing.numbers import readable
from exp.claims.committed import Committed, reading
from exp.claims.intervals import draw, found, number
from exp.claims.page_frame import SCRIPT, STYLE, controls
from exp.claims.remarks import advice
from exp.claims.report import COLUMNS, rows
from exp.claims.setting import own, setting
from exp.claims.statistics import Verdict
from exp.markup import Markup, element, joined, text
from exp.page_frame import document

FORMER = "former rule"
FORMER_MEANS = "one look at seeds that were chosen beforehand, judged by the t interval alone"
# Where the two checks of a verdict disagree, a bar may clear the boundary and yet leave the answer open.
_HOW_TO_READ = (
    "Each bar is the interval of a mean over seeds, its dot the mean: of a comparison the left side less the right "
    "one, seed by seed. The upright line is the boundary that the expectation names, the dashed one is zero, and the "
    "tinted side is where the expectation is met. To hold it, a bar must lie wholly there; to fail it, wholly outside. "
    "Whether code, configs and arms are as published is said of the day on which this page was written."
)


def page(results: Sequence[Committed], changed: Mapping[str, list[str]]) -> str:
    """The page.

    Args:
        results: what has been published.
        changed: name of each -> what of its code, configs and arms is another one since then.

    Raises:
        SummaryError: a result is none of compare's.
    """
    articles = []
    for committed in results:
        with reading(committed.folder):
            articles.append(_article(committed, changed[committed.folder.name]))
    counts = count(results)
    head = [
        element("h1", "Claims"),
        element(
            "p",
            "A claim is a sentence that a few training runs answer: what it expects was written down before they ran, "
            "and whatever came out stands here. ",
            element("a", "How a verdict is reached", href="../claims.md"),
            ".",
        ),
        element("div", *(_tile(verdict, counts[verdict]) for verdict in Verdict), class_="counts"),
        element("p", _HOW_TO_READ, class_="quiet"),
    ]
    if any(committed.former for committed in results):
        head.append(element("p", _former(), f": {FORMER_MEANS}. Measured again, it is judged anew.", class_="quiet"))
    return document("Claims", joined(*head, controls()), joined(*articles), STYLE, SCRIPT) + "\n"


def count(results: Sequence[Committed]) -> Counter[Verdict]:
    """How many results have which verdict.

    Raises:
        SummaryError: a verdict is none.
    """
    counts: Counter[Verdict] = Counter()
    for committed in results:
        with reading(committed.folder):
            counts[Verdict(committed.result["verdict"])] += 1
    return counts


def _tile(verdict: Verdict, number: int) -> Markup:
    return element(
        "button",
        element("b", str(number)),
        verdict,
        type="button",
        class_=_class(verdict),
        data_verdict=verdict,
        aria_pressed="false",
        disabled=True,
    )


def _former() -> Markup:
    return element("span", FORMER, class_="former")


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _article(committed: Committed, changed: list[str]) -> Markup:
    folder, result, around = committed
    verdict = Verdict(result["verdict"])
    judged = element("span", verdict.capitalize(), class_="verdict")
    source = element("span", result["source"], class_="quiet")
    line = [judged, *([" ", _former()] if committed.former else []), *([" · ", source] if result["source"] else [])]
    place, today = quote(folder.name), "code changed" if changed else "code as published"
    links = {"report": "report.md", "results": "results.json", "circumstances": "circumstances.json"}
    return element(
        "article",
        element("h2", result["claim"]),
        element("p", *line),
        element("p", " · ".join(_brief(committed)), element("span", f" · {today}", class_="today"), class_="quiet"),
        element("ul", *(_expectation(answer, result) for answer in result["expectations"]), class_="expectations"),
        _details("Setting", _facts(committed, changed), *([element("p", result["notes"])] if result["notes"] else [])),
        _details(f"Arms ({len(result['arms'])}): what each changes, reaches and costs", _arms(result, around)),
        element("p", *_between(" · ", [element("a", n, href=f"{place}/{file}") for n, file in links.items()])),
        id=f"claim-{place}",
        class_=_class(verdict),
        data_verdict=verdict,
        data_date=around["date"],
        data_seeds=str(len(result["seeds"])),
    )


def _expectation(answer: Mapping[str, Any], result: Mapping[str, Any]) -> Markup:
    verdict = Verdict(answer["verdict"])
    shown = found(answer, result)
    said = [element("code", answer["expect"])]
    if shown:
        said.append(element("p", shown.words()))
    remarks = [answer["reason"]] if answer["reason"] else []
    if answer.get("settled"):
        remarks.append(f"settled with {answer['settled']} seeds")
    remarks += answer.get("remarks", [])
    if (needed := answer.get("would_settle")) and shown:
        remarks.append(advice(needed, shown.size(number(needed["difference"]))))
    if remarks:
        said.append(element("ul", *(element("li", remark) for remark in remarks), class_="remarks"))
    return element(
        "li",
        element("span", verdict, class_=f"verdict {_class(verdict)}"),
        element("div", *said),
        draw(shown, _class(verdict)) if shown else "",
    )


def _brief(committed: Committed) -> list[str]:
    """The setting in a line."""
    _, result, around = committed
    facts = dict(setting(result))
    looks = len(result.get("looks", []))
    costs = [arm["macs"] for arm in result["arms"].values() if arm["macs"]]
    least, most = (readable(cost) for cost in (min(costs), max(costs))) if costs else ("", "")
    return [
        *([facts["Data"]] if "Data" in facts else []),
        *([_several(facts["Epochs"], "epoch")] if "Epochs" in facts else []),
        _several(str(len(result["seeds"])), "seed") + (f" in {_several(str(looks), 'look')}" if looks else ""),
        *([f"{least} multiply-adds" if least == most else f"{least} to {most} multiply-adds"] if costs else []),
        *filter(None, [_time(around)]),
        f"{around['date']}, {around['commit'] or 'unknown commit'}",
    ]


def _facts(committed: Committed, changed: list[str]) -> Markup:
    _, result, around = committed
    looks = result.get("looks", [])
    seeds = ", ".join(f"{seed:d}" for seed in result["seeds"])
    facts = [
        ("Claim", result["file"]),
        *setting(result),
        ("Seeds", seeds + (f"; looked at after {', '.join(f'{look:d}' for look in looks)}" if looks else "")),
        ("Measured", f"{around['date']}, commit {around['commit'] or 'unknown'}, {around['machine']}"),
        *(("Failed", f"{failed['cell']}: {failed['reason']}") for failed in result["failed"]),
    ]
    now = "changed since: " + "; ".join(changed) if changed else "as published"
    entries = [joined(element("dt", name), element("dd", said)) for name, said in facts if said]
    return element("dl", *entries, element("dt", "Code today"), element("dd", now, class_="today"))


def _time(around: Mapping[str, Any]) -> str:
    """Of the whole claim, or of the training steps where that was not recorded."""
    if around.get("minutes") is not None:
        jobs = around["jobs"]
        return f"{_minutes(number(around['minutes']))}, {_several(f'{jobs:d}', 'cell')} at a time"
    seconds = [cell["seconds"] for arm in around["arms"].values() for cell in arm.values()]
    spent = sum(number(value) for value in seconds if value is not None)
    return f"{_minutes(spent / 60)} of training steps" if spent else ""


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 1 else "under a minute"


def _several(many: str, what: str) -> str:
    return f"{many} {what}" if many == "1" else f"{many} {what}s"


def _details(title: str, *content: Markup) -> Markup:
    return element("details", element("summary", title), *content)


def _arms(result: Mapping[str, Any], around: Mapping[str, Any]) -> Markup:
    """What each arm changes, what it reached, and what it cost."""
    diverged = any(arm.get("diverged") for arm in result["arms"].values())
    head = [*COLUMNS, *(["diverged seeds"] if diverged else [])]
    body = []
    for row, arm in zip(rows(dict(result), dict(around)), result["arms"].values(), strict=True):
        name, *figures = row
        cells = [name, *(figure.replace("-", "−") for figure in figures)]
        cells += [", ".join(f"{seed:d}" for seed in arm.get("diverged", []))] if diverged else []
        body.append(element("tr", *(element("td", cell) for cell in cells)))
    table = element(
        "table",
        element("thead", element("tr", *(element("th", name, scope="col") for name in head))),
        element("tbody", *body),
    )
    changes = [joined(element("dt", name), element("dd", own(result, name))) for name in result["arms"]]
    return joined(
        element("div", table, class_="wide", tabindex="0", role="region", aria_label="arms"), element("dl", *changes)
    )


def _between(separator: str, parts: Sequence[Markup]) -> list[Markup]:
    return [part for i, each in enumerate(parts) for part in ((text(separator), each) if i else (each,))]
