"""Formulae as MathML, which browsers draw by themselves: pages need no script from elsewhere."""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert


def inline(translator, node) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display(translator, node) -> None:
    label = node.get("label")
    identity = f' id="{node["ids"][0]}"' if label and node["ids"] else ""
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="math"{identity}>{formula}</div>\n')
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
