"""What every page of ours is made of: text made harmless, tables, sections, the look, and the frame around them.

A page is one HTML file that needs nothing but itself. Its Content-Security-Policy forbids every load and every script
but the page's own, which is named by its hash. All text is escaped where it is put into the page; `Html` marks what
is HTML already.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape


class Html(str):
    """Text that is HTML already; every other text is escaped when it is put into the page."""


# Control characters, half surrogate pairs, what reorders the text around it, and what hides: shown, not obeyed.
# Joiners (U+200C, U+200D) stay: scripts and emoji are written with them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with every character that is not meant to be seen as its number: "⟦U+202E⟧". Line ends are \\n."""
    return _UNSEEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text.replace("\r\n", "\n"))


def cut(text: str, most: int) -> str:
    """The beginning of a text that is longer than `most` characters, for names in tables and charts."""
    return text if len(text) <= most else text[: most - 1] + "…"


def cell(value: str) -> Html:
    """Text as HTML: an en dash for what is not known, an interval in brackets small."""
    if isinstance(value, Html):
        return value
    text = escape(visible("–" if value == "-" else value)).replace("\n", "<br>")
    mean, bracket, rest = text.partition(" [")
    return Html(f"{mean} <small>[{rest}</small>" if bracket and rest.endswith("]") else text)


def table(heads: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1, kind: str = "") -> Html:
    """A table; the first columns hold words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="w"' if place < words else "" for place in range(len(cells))]
        return "".join(f"<{tag}{kind}>{cell(value)}</{tag}>" for kind, value in zip(kinds, cells, strict=True))

    body = "\n".join(f"<tr>{line(cells, 'td')}</tr>" for cells in lines)
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    of = f' class="{kind}"' if kind else ""
    return Html(f'<div class="scroll" tabindex="0"><table{of}>{head}\n<tbody>{body}</tbody></table></div>')


def fact_list(found: Mapping[str, str]) -> Html:
    """Names and values in a grid; nothing for none."""
    entries = "".join(f"<div><dt>{cell(name)}</dt><dd>{cell(value)}</dd></div>" for name, value in found.items())
    return Html(f"<dl>{entries}</dl>" if found else "")


def section(title: str, body: str) -> Html:
    """A section whose body is HTML."""
    return Html(f"<section><h2>{cell(title)}</h2>\n{body or '<p>not done</p>'}</section>")


def folded(title: str, body: str) -> Html:
    """HTML that is shown when asked for."""
    return Html(f"<details><summary>{cell(title)}</summary>{body}</details>") if body else Html("")


def figure(svg: str, caption: str) -> Html:
    """A picture with its caption."""
    return Html(f"<figure>{svg}<figcaption>{cell(caption)}</figcaption></figure>")


def small(text: str) -> Html:
    """A remark."""
    return Html(f"<p><small>{escape(visible(text))}</small></p>")


def document(title: str, body: str, *, css: str = "", script: str = "", styled: bool = False) -> bytes:
    """The whole page, UTF-8.

    Args:
        title: text.
        body: HTML.
        css: rules after the common ones; as ours as the script, never made of data.
        script: JavaScript that runs after the body is read.
        styled: the body has style attributes (matplotlib's pictures do): allow them.
    """
    css = CSS + css
    styles = "'unsafe-inline'" if styled else f"'sha256-{_digest(css)}'"
    policy = f"default-src 'none'; style-src {styles}; base-uri 'none'; form-action 'none'"
    if script:
        policy += f"; script-src 'sha256-{_digest(script)}'"
    head = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(visible(title))}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{css}</style></head>\n<body><main>\n"
    )
    code = f"\n<script>{script}</script>" if script else ""
    return (head + body + f"\n</main>{code}</body></html>\n").encode(errors="replace")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


CSS = """
:root{color-scheme:light dark;--ink:#1d2430;--soft:#5d6675;--line:#dfe3e9;--page:#fff;--tint:#f5f7fa;--mark:#2f6fde}
@media (prefers-color-scheme:dark){:root{--ink:#e3e6eb;--soft:#9aa3b0;--line:#333a45;--page:#14181e;--tint:#1c222b}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:64rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2.5rem 0 .75rem}
.headline{font-size:1.1rem}summary{cursor:pointer}
small,figcaption,dt,th{color:var(--soft)}small{font-size:.8em;font-weight:400}
dd,figure{margin:0}dd{overflow-wrap:anywhere}.stages{display:flex;flex-wrap:wrap;gap:.5rem;list-style:none;padding:0}
.stages li{border:1px solid var(--line);border-radius:1rem;padding:.1rem .8rem;font-size:.85rem}
.note{border-left:3px solid var(--mark);background:var(--tint);padding:.6rem 1rem}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:.75rem 0}
th,td{padding:.3rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
dt{font-size:.8rem}th{font-weight:500;vertical-align:bottom}td{vertical-align:top}td small{margin-left:.2em}
.w{text-align:left;padding-left:0;white-space:normal;overflow-wrap:anywhere;min-width:6.5rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.6rem 1rem}
.large,.small{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
figcaption{font-size:.85rem}.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
svg{display:block;width:100%;height:auto;stroke-linejoin:round}svg text{font-family:inherit!important}
.bar{display:inline-block;width:5rem;height:.5rem;background:var(--tint)}
.bar i{display:block;height:100%;background:var(--soft)}.bar.kept i,.bar.items_kept i{background:var(--mark)}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#ccc;--page:#fff;--tint:#f5f5f5}
main{max-width:none}body{font-size:10pt}table{font-size:8pt}.scroll{overflow:visible}figure,tr{break-inside:avoid}}
"""
