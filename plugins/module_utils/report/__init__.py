"""The report of one run: what the record says about it, for people and for machines.

:func:`build` is a pure function from plan and entries to one document (plain JSON, its keys are described in
``document.py``); :func:`to_html`, :func:`to_markdown` and :func:`to_json` write it down. The same record gives the same
bytes.
"""

from .document import FORMAT, build
from .render import to_html, to_json, to_markdown

__all__ = ["FORMAT", "build", "to_html", "to_json", "to_markdown"]
