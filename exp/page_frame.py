"""What pages that exp writes look like: one HTML file that asks for nothing from elsewhere, light or dark."""

from __future__ import annotations

import base64
import hashlib

from exp.markup import Markup, element

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
svg { display: block; max-width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--quiet); }
dl { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: .125rem 1rem; margin: .75rem 0;
  font-size: .875rem; }
dd { margin: 0; }
details, article p { margin: .375rem 0; font-size: .875rem; } article h2 + p { font-size: 1rem; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
"""


def document(title: str, head: Markup, body: Markup, style: str, script: str) -> str:
    """A whole page.

    Its policy lets nothing load, and no script run but its own, whatever the texts on it may say.

    Args:
        title: of the window.
        head: what stands above it.
        body: what it is about.
        style: what is its own of its looks.
        script: what is done with it.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
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
            element("style", Markup(STYLE + style)),
        ),
        element("body", element("header", head), element("main", body), element("script", Markup(script))),
        lang="en",
    )
