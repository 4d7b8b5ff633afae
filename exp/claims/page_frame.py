"""What the page of all claims looks like, and how it sorts: neither asks for anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib

from exp.claims.markup import Markup, element, joined

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --panel: #f6f7f9; --line: #d5d9e0; --text: #1b1f24; --quiet: #565e69;
  --good: #176c33; --bad: #b3261e; --open: #7d5300; --met: #dff1e4; --link: #0a58b5; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --panel: #1d2126; --line: #383e47; --text: #e4e7eb;
  --quiet: #a2abb7; --good: #57c97a; --bad: #ff8a80; --open: #e2b23f; --met: #1e3a28; --link: #7db3f5; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
header, main { max-width: 68rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
h1 { margin: 0 0 .5rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 0 0 .5rem; font-size: 1.125rem; line-height: 1.35; }
p { margin: .5rem 0; max-width: 52rem; }
a { color: var(--link); }
code { font: .875em/1.45 ui-monospace, monospace; }
.quiet, dt, .remarks, caption { color: var(--quiet); }
.holds { --tone: var(--good); } .does-not-hold { --tone: var(--bad); } .inconclusive { --tone: var(--open); }
.no-verdict { --tone: var(--quiet); }
.counts { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 1rem 0; padding: 0; }
.counts button { padding: .5rem .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--panel);
  color: var(--text); font: inherit; text-align: left; overflow-wrap: normal; }
.counts button:enabled { cursor: pointer; }
.counts button[aria-pressed=true] { outline: 2px solid var(--tone); outline-offset: -1px; }
.counts b { display: block; color: var(--tone); font-size: 1.75rem; line-height: 1.2; }
.controls { display: flex; flex-wrap: wrap; gap: .75rem 1rem; align-items: center; margin: 1rem 0; }
.controls input, .controls select { padding: .375rem .5rem; border: 1px solid var(--line); border-radius: .375rem;
  background: var(--ground); color: var(--text); font: inherit; max-width: 100%; }
article { margin: 1rem 0; padding: 1rem 1.25rem .5rem; border: 1px solid var(--line); border-radius: .5rem; }
.verdict { color: var(--tone); } h2 + p .verdict { font-weight: 600; }
.former { padding: 0 .375rem; border: 1px solid var(--line); border-radius: .25rem; color: var(--quiet);
  font-size: .8125rem; white-space: nowrap; }
.expectations { margin: .75rem 0; padding: 0; list-style: none; }
.expectations > li { display: grid; grid-template-columns: 7rem minmax(0, 1fr) 280px; gap: .25rem 1rem;
  padding: .5rem 0; border-top: 1px solid var(--line); }
.expectations p, .remarks { margin: .125rem 0; font-size: .875rem; }
.remarks { padding-left: 1.125rem; }
svg { display: block; max-width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--quiet); }
.met { fill: var(--met); } .axis { stroke: var(--line); } .boundary { stroke: var(--text); stroke-width: 1.5; }
.zero { stroke: var(--quiet); stroke-dasharray: 3 3; }
.interval path { fill: none; stroke: var(--tone); stroke-width: 2.5; } .interval circle { fill: var(--tone); }
dl { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: .125rem 1rem; margin: .75rem 0;
  font-size: .875rem; }
dd { margin: 0; }
details, article p { margin: .375rem 0; font-size: .875rem; } article h2 + p { font-size: 1rem; }
article .quiet { max-width: none; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
@media (max-width: 44rem) {
  article { padding: .75rem .75rem .25rem; }
  .counts { grid-template-columns: repeat(2, 1fr); }
  .expectations > li, dl { grid-template-columns: minmax(0, 1fr); }
  dd { margin-bottom: .375rem; }
}
@media print { .controls { display: none; } article { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
const list = document.querySelector("main");
const claims = [...list.querySelectorAll("article")];
const buttons = [...document.querySelectorAll(".counts button")];
const words = document.getElementById("words");
const order = document.getElementById("order");
const shown = document.getElementById("shown");
const rank = ["holds", "does not hold", "inconclusive", "no verdict"];
const orders = {
  name: (a, b) => a.id < b.id ? -1 : 1,
  verdict: (a, b) => rank.indexOf(a.dataset.verdict) - rank.indexOf(b.dataset.verdict),
  date: (a, b) => b.dataset.date.localeCompare(a.dataset.date),
  seeds: (a, b) => b.dataset.seeds - a.dataset.seeds,
};
function show() {
  const wanted = buttons.filter(b => b.getAttribute("aria-pressed") === "true").map(b => b.dataset.verdict);
  const asked = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const claim of claims) {
    const text = (claim.id + " " + claim.textContent).toLowerCase();
    const fits = (!wanted.length || wanted.includes(claim.dataset.verdict)) && asked.every(word => text.includes(word));
    claim.hidden = !fits;
    count += fits;
  }
  list.append(...claims.sort((a, b) => orders[order.value](a, b) || orders.name(a, b)));
  shown.textContent = count + " of " + claims.length + " shown";
}
for (const button of buttons) {
  button.disabled = false;
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    show();
  });
}
words.addEventListener("input", show);
order.addEventListener("change", show);
document.querySelector(".controls").hidden = false;
show();
"""


def document(title: str, head: Markup, body: Markup) -> str:
    """A whole page.

    Its policy lets nothing load, and no script run but the one above, whatever a result may say.

    Args:
        title: of the window.
        head: what stands above the list.
        body: the list.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return "<!doctype html>\n" + element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            # Otherwise a browser asks the host for one.
            element("link", rel="icon", href="data:,"),
            element("title", title),
            element("style", Markup(STYLE)),
        ),
        element("body", element("header", head), element("main", body), element("script", Markup(SCRIPT))),
        lang="en",
    )


def controls() -> Markup:
    """What the script needs to filter and to sort; without it nothing of it is shown."""
    names = {"name": "name", "verdict": "verdict", "date": "newest first", "seeds": "most seeds first"}
    choices = joined(*(element("option", label, value=value) for value, label in names.items()))
    return element(
        "div",
        element("label", "with the words ", element("input", id="words", type="search", size="18")),
        element("label", "sorted by ", element("select", choices, id="order")),
        element("span", id="shown", class_="quiet", role="status"),
        class_="controls",
        hidden=True,
    )
