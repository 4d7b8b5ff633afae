"""What a report looks like beyond any other page, and what its script does: hide runs, say values, sort a table."""

from __future__ import annotations

# Of ten runs by day and by night; the next ten are dashed.
DAY = ("#1f5fbf", "#c2410c", "#15803d", "#7e22ce", "#b91c7c", "#0e7490", "#8a5a00", "#4d4d4d", "#d11f1f", "#4338ca")
NIGHT = ("#6ea8fe", "#fb923c", "#4ade80", "#c084fc", "#f472b6", "#22d3ee", "#facc15", "#c9c9c9", "#f87171", "#a5b4fc")


def _colours(names: tuple[str, ...]) -> str:
    return " ".join(f".r{i}, .r{i + 10} {{ --tone: {name}; }}" for i, name in enumerate(names))


STYLE = (
    _colours(DAY)
    + "\n@media (prefers-color-scheme: dark) { "
    + _colours(NIGHT)
    + " }\n"
    + "".join(f".r{i}.line {{ stroke-dasharray: 7 3; }} " for i in range(10, 20))
    + """
header, main { max-width: 84rem; }
section { margin: 1.5rem 0; }
.runs { display: flex; flex-wrap: wrap; gap: .375rem; margin: .75rem 0; padding: .5rem 0; position: sticky; top: 0;
  background: var(--ground); z-index: 1; max-height: 40vh; overflow-y: auto; }
.runs button { display: flex; align-items: center; gap: .375rem; padding: .25rem .5rem; border: 1px solid var(--line);
  border-radius: .375rem; background: var(--panel); color: var(--text); font: inherit; font-size: .8125rem;
  text-align: left; }
.runs button:enabled { cursor: pointer; }
.runs button::before, td.run::before { content: ""; display: inline-block; flex: none; width: .75rem; height: .75rem;
  border-radius: 50%; background: var(--tone); }
td.run::before { margin-right: .375rem; }
.runs button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
.panel { position: relative; padding: .5rem; border: 1px solid var(--line); border-radius: .5rem; }
.panel svg { width: 100%; }
figcaption { font-size: .875rem; }
.grid { stroke: var(--line); stroke-width: .75; }
.line { fill: none; stroke: var(--tone); stroke-width: 1.75; stroke-linejoin: round; }
.line.faint { opacity: .4; stroke-width: 1.25; }
.dot { fill: var(--tone); stroke: var(--ground); stroke-width: 1.5; }
.cursor { stroke: var(--quiet); stroke-dasharray: 3 3; }
.tip { position: absolute; top: 2.25rem; z-index: 2; max-width: 90%; max-height: 14rem; overflow: hidden;
  padding: .25rem .5rem; border: 1px solid var(--line); border-radius: .375rem; background: var(--panel);
  font-size: .75rem; pointer-events: none; white-space: nowrap; }
.tip b { color: var(--tone); }
.pictures { display: flex; gap: .75rem; overflow-x: auto; padding-bottom: .5rem; }
.pictures figure { flex: 0 0 min(100%, 26rem); }
.pictures img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line); }
th button { padding: 0; border: 0; background: none; color: inherit; font: inherit; cursor: pointer; }
td.number, th.number { text-align: right; }
td.changed { white-space: normal; min-width: 6rem; max-width: 22rem; }
tbody th { font-weight: 400; color: var(--quiet); }
@media (max-width: 44rem) { .runs { position: static; } }
@media print { .runs { position: static; } .panel, .pictures figure { break-inside: avoid; } }
"""
)

SCRIPT = """
"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];
const off = new Set();
for (const button of all(".runs button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const run = button.dataset.run;
    off.has(run) ? off.delete(run) : off.add(run);
    button.setAttribute("aria-pressed", !off.has(run));
    for (const each of all("main [data-run]")) each.toggleAttribute("hidden", off.has(each.dataset.run));
  });
}
for (const path of all("path.line")) {
  path.xs = path.dataset.x.split(" ").map(Number);
  path.ys = path.dataset.y.split(" ").map(Number);
}
function row(tone, name, value) {
  const line = document.createElement("div"), mark = document.createElement("b");
  mark.className = tone;
  mark.textContent = value;
  line.append(mark, " " + name);
  return line;
}
for (const panel of all(".panel")) {
  const svg = panel.querySelector("svg"), box = svg.viewBox.baseVal, data = svg.dataset;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  panel.append(tip);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);
  const paths = all("path.line", svg);
  const leave = () => { tip.hidden = true; cursor.setAttribute("d", ""); };
  function show(rows, share) {
    tip.replaceChildren(...rows);
    tip.hidden = !rows.length;
    tip.style.left = share < .5 ? "auto" : ".75rem";
    tip.style.right = share < .5 ? ".75rem" : "auto";
  }
  svg.addEventListener("pointermove", event => {
    if (!paths.length || event.target.matches(".dot")) return;
    const place = svg.getBoundingClientRect();
    const x = (event.clientX - place.left) / place.width * box.width;
    const share = (x - data.left) / (data.right - data.left);
    if (share < -.02 || share > 1.02) return leave();
    const step = +data.low + share * (data.high - data.low);
    const rows = [];
    for (const path of paths) {
      if (path.hasAttribute("hidden")) continue;
      let best = 0;
      path.xs.forEach((each, i) => { if (Math.abs(each - step) < Math.abs(path.xs[best] - step)) best = i; });
      rows.push([path.ys[best], row(path.getAttribute("class").replace(/line|faint/g, ""),
        path.dataset.name + " at " + path.xs[best], path.ys[best])]);
    }
    cursor.setAttribute("d", "M" + x + " 10V" + (box.height - 38));
    show(rows.sort((a, b) => b[0] - a[0]).slice(0, 12).map(each => each[1]), share);
  });
  svg.addEventListener("pointerleave", leave);
  for (const dot of all(".dot", svg)) {
    const told = () => show([row(dot.getAttribute("class"), dot.dataset.told, "")], dot.getAttribute("cx") / box.width);
    dot.addEventListener("pointerenter", told);
    dot.addEventListener("focus", told);
    dot.addEventListener("blur", leave);
  }
}
for (const table of all("table.sortable")) {
  all("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const each of all("thead th", table)) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => { const cell = row.children[column]; return cell.dataset.value ?? cell.textContent; };
      const order = (a, b) => key(a) - key(b) || String(key(a)).localeCompare(key(b));
      const rows = all("tbody tr", table).sort((a, b) => !key(a) - !key(b) || (up ? order(a, b) : order(b, a)));
      table.tBodies[0].append(...rows);
    });
  });
}
"""
