"""Writes the report of a run; see the module's documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from ..module_utils.errors import BalikError
from ..module_utils.files import write_whole
from ..module_utils.report import build, to_html, to_json, to_markdown
from ..plugin_utils.action import RollbackAction

WRITERS = {"html": to_html, "md": to_markdown, "json": to_json}
#: A run's name becomes a folder's.
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ActionModule(RollbackAction):
    """Reads the record and writes HTML, Markdown and JSON beside each other."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {"run": {"type": "str", "default": ""}}

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.believe_record()
        entries = self.entries()
        run = arguments["run"] or next((e.run for e in reversed(entries) if e.kind == "run-opened"), "")
        folder = self.state_dir / "reports" / run
        if self.check_mode:
            return {"run": run, "says": f"would write the report of run {run or '(none yet)'} to {folder}"}
        if run and not _FOLDER.fullmatch(run):
            raise BalikError("the run", f"found {run!r}", "a run's name such as 20260110T130000Z-3f9a")
        document = self.scrubbed(build(self.plan, entries, run, self._inventory()))
        paths = {ending: folder / f"report.{ending}" for ending in WRITERS}
        changed = [_write(path, WRITERS[ending](document)) for ending, path in paths.items()]
        says = f"the report of run {run} ({document['outcome']}) is {paths['html']}"
        self.say(says)
        return {
            "changed": any(changed),
            "run": run,
            "outcome": document["outcome"],
            "paths": {ending: str(path) for ending, path in paths.items()},
            "says": says,
        }

    def _inventory(self) -> list[str]:
        """What was given with -i, as far as it lies in the working directory: elsewhere (in AWX) it is made anew for
        each job, and is no use to who reads the report."""
        here = Path.cwd()
        sources = [Path(str(source)) for source in self.task_vars.get("ansible_inventory_sources") or ()]
        return [str(source.relative_to(here)) for source in sources if source.is_relative_to(here)]


def _write(path: Path, text: str) -> bool:
    """Write a file so that a reader sees the old or the new one, never half of it; whether it had to be written.

    The file is its owner's alone, and so are folders that had to be made.
    """
    try:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        write_whole(path, text, 0o600)
    except OSError as error:
        raise BalikError(
            str(path),
            f"cannot be written: {error.strerror}",
            do="The record has everything: mend that, and `ansible-playbook playbooks/report.yml` writes the report.",
        ) from None
    return True
