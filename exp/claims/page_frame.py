"""What the page of all claims looks like beyond any other page, and how it sorts."""

from __future__ import annotations

from exp.markup import Markup, element, joined

STYLE = """
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
.met { fill: var(--met); } .axis { stroke: var(--line); } .boundary { stroke: var(--text); stroke-width: 1.5; }
.zero { stroke: var(--quiet); stroke-dasharray: 3 3; }
.interval path { fill: none; stroke: var(--tone); stroke-width: 2.5; } .interval circle { fill: var(--tone); }
article .quiet { max-width: none; }
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
