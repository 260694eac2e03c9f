"""A report's document as HTML, Markdown and JSON.

What stands in the document was written by many hands and is never trusted: in HTML everything is escaped by Jinja2, and
the page forbids itself any script and any request; in Markdown every printed expression is escaped on its way out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import timezone
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..units import parse_time
from .document import named, spoken_duration, tone_of
from .words import WORDS, ZONES

_TEMPLATES = Path(__file__).parent / "templates"
#: Lines of one host's evidence; there is always more in the JSON.
_MOST_FACTS = 40
_WIDTH, _HEIGHT, _EDGE = 240.0, 48.0, 3.0


def to_html(document: Mapping[str, Any]) -> str:
    """One page that needs nothing else: on a screen of any size, in the dark, and on paper."""
    return _render("report.html.j2", document)


def to_markdown(document: Mapping[str, Any]) -> str:
    """For tickets and wikis (CommonMark with tables and task lists)."""
    text = _render("report.md.j2", document)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_json(document: Mapping[str, Any]) -> str:
    """For machines; the keys are described in ``document.py``."""
    return json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _render(template: str, document: Mapping[str, Any]) -> str:
    language = document["language"] if document["language"] in WORDS else "en"
    template_of = _environment(language, template.endswith(".md.j2")).get_template(template)
    return template_of.render(r=document, zone=_zone_name(language, document["opened_at"]))


def _zone_name(language: str, at: str) -> str:
    """``UTC``, or ``WIB (UTC+07:00)``."""
    local = parse_time(at).astimezone(ZONES[language])
    offset = local.strftime("%z")
    return "UTC" if not local.utcoffset() else f"{local.tzname()} (UTC{offset[:3]}:{offset[3:]})"


@cache
def _environment(language: str, markdown: bool) -> Environment:
    words, zone = WORDS[language], ZONES[language]

    def time(at: str | None, zone: timezone = zone) -> str:
        return parse_time(at).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S") if at else words["none"]

    def word(group: str, name: str | None) -> str:
        return words["none"] if name is None else words[group].get(name, name)

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_as_markdown if markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        time=time,
        duration=lambda seconds: words["none"] if seconds is None else spoken_duration(seconds, words),
        tone=tone_of,
        facts=_facts,
        figure=_figure,
        spark=_spark,
        code=_code,
        named=lambda said: named(said["host"], said["says"]),
        rows=lambda count: words["text"]["not_known"] if count is None else f"{count:,}",
        lost=lambda told: _lost(told, words, time),
        held=lambda held: _held(held, words, time),
        kept=lambda k: named(
            k["host"], words["text"]["kept"].format(step=k["step"] or words["none"], files=", ".join(k["files"]))
        ),
        lost_by=lambda table: _lost_by(table, words),
        or_dash=lambda text: words["none"] if text is None or text == "" else text,
        word_scope=lambda name: word("scope", name),
        word_way=lambda name: word("way", name),
    )
    environment.globals.update(w=words, word=word, utc=timezone.utc, is_utc=zone == timezone.utc)
    return environment


def _facts(value: Any) -> list[tuple[str, str]]:
    """A dictionary of any depth as lines of key path and value."""
    lines: list[tuple[str, str]] = []

    def walk(path: str, part: Any) -> None:
        if len(lines) > _MOST_FACTS:
            return
        if isinstance(part, dict) and part:
            for key, item in part.items():
                walk(f"{path}.{key}" if path else key, item)
        elif part not in ({}, [], None, ""):
            text = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            lines.append((path, text if len(text) <= 500 else f"{text[:500]}… (+{len(text) - 500})"))

    walk("", value)
    return [*lines[:_MOST_FACTS], ("…", "")] if len(lines) > _MOST_FACTS else lines


def _held(held: Mapping[str, Any] | None, words: Mapping[str, Any], time: Callable[[str | None], str]) -> str:
    """How long users saw the maintenance page, and whether they still do."""
    if held is None:
        return words["none"]
    if held["now"] == "off":
        return spoken_duration(held["seconds"], words)
    over = [each for each in held["times"] if each["until"]]
    how, since = "held_from", held["from"]
    if held["now"] == "unknown":
        how = "held_unknown"
    elif over:
        how, since = "held_again", held["times"][-1]["from"]
    took = sum((parse_time(e["until"]) - parse_time(e["from"])).total_seconds() for e in over)
    return words["head"][how].format(since=time(since), took=spoken_duration(took, words))


def _lost(told: Mapping[str, Any], words: Mapping[str, Any], time: Callable[[str | None], str]) -> str:
    """What was told of one host, in one sentence."""
    texts = words["text"]
    if not told["database"] or told["lost"] is None:
        said = texts["lost_unknown"].format(reason=told["reason"] or next(iter(told["says"]), words["none"]))
    else:
        how = "lost_exactly" if told["exact"] else "lost_least" if told["at_least"] else "lost_about"
        said = texts[how].format(
            database=told["database"],
            backup=told["backup"] or words["none"],
            taken_by=told["taken_by"] or "",
            taken=time(told["taken"]),
            at=time(told["at"]),
            rows=f"{told['lost']:,}",
            reason=told["reason"] or words["none"],
        )
    return named(told["host"], said)


def _lost_by(table: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """Where a table's figures come from, and what else is to be known of it."""
    how = words["lost_by"].get(table["how"], table["how"] or words["none"])
    columns = [
        words["text"]["column"].format(
            count=words["text"]["not_known"] if count is None else f"{count:,}", column=column
        )
        for column, count in table["columns"].items()
    ]
    return "; ".join(filter(None, [how, *columns, table["note"]]))


def _figure(value: Any) -> str:
    return value if isinstance(value, str) else "—" if value is None else f"{value:.4g}"


def _spark(criterion: Mapping[str, Any]) -> dict[str, Any] | None:
    """The samples as lines in a box of 240 × 48; a missing sample interrupts the line. None below three values."""
    samples = [sample for sample in criterion["samples"] if sample["at"]]
    values = [sample["value"] for sample in samples if _is_figure(sample["value"])]
    if len(values) < 3:
        return None
    limit = criterion["threshold"]
    low, high = min(values), max(values)
    bottom, top = (low, high) if limit is None else (min(low, limit), max(high, limit))
    begin, end = (parse_time(samples[i]["at"]).timestamp() for i in (0, -1))

    def y(value: float) -> float:
        return round(_HEIGHT - _EDGE - (value - bottom) / ((top - bottom) or 1) * (_HEIGHT - 2 * _EDGE), 1)

    lines: list[list[str]] = [[]]
    for sample in samples:
        if not _is_figure(sample["value"]):
            lines.append([])
            continue
        at = (parse_time(sample["at"]).timestamp() - begin) / ((end - begin) or 1)
        lines[-1].append(f"{round(_EDGE + at * (_WIDTH - 2 * _EDGE), 1)},{y(sample['value'])}")
    # A point alone has no line: drawn to itself, with round ends, it is a dot.
    drawn = [" ".join(line if len(line) > 1 else line * 2) for line in lines if line]
    return {
        "lines": drawn,
        "limit": None if limit is None else y(limit),
        "count": len(values),
        "low": _figure(low),
        "high": _figure(high),
        "last": _figure(values[-1]),
    }


def _is_figure(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e300
    )


# Markdown

_SPECIAL = re.compile(r"([\\`*\[\]|~$])")
_LONE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_BLOCK = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[#+\-=]))")


def _as_markdown(value: Any) -> Markup:
    """One line of Markdown that reads as the text and as nothing else; what is Markdown already stays."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    text = _LONE_UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\1", text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _BLOCK.sub(r"\1\\", text)
    return Markup(text)


def _code(value: Any) -> Markup:
    """A code span: nothing in it is Markdown or HTML. Not for tables, where a pipe would end the cell."""
    text = " ".join(str(value).split())
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{ticks}{space}{text}{space}{ticks}")
