"""Entry points of roles, run by ansible-playbook on this machine as the wrapper runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Entry point → what it registers, where that is not ``rollback_step_<entry>``.
_REGISTERS = {"prepare": "maintenance_page_prepared"}


def play(
    folder: Path,
    steps: Sequence[tuple[str, str]],
    variables: Mapping[str, Any],
    saved: Mapping[str, Any],
    secret: str = "",
    limit: float = 180,
) -> list[dict[str, Any]]:
    """What each entry point registered.

    :param steps: (role, entry point).
    :param saved: what the wrapper would hand over as ``rollback_step_saved``.
    :param secret: must not be shown by any task.
    """
    tasks: list[dict[str, Any]] = []
    for role, entry in steps:
        given = {"rollback_run_id": "r1", "rollback_step_saved": dict(saved)}
        registers = (
            f"rollback_step_{_REGISTERS.get(entry, entry)}" if entry != "prepare" else "maintenance_page_prepared"
        )
        tasks.append({"ansible.builtin.include_role": {"name": role, "tasks_from": entry}, "vars": given})
        tasks.append({"ansible.builtin.debug": {"msg": f"{{{{ {registers} | to_json }}}}"}})
    known = {"ansible_python_interpreter": sys.executable, **variables}
    book = folder / "play.yml"
    book.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": known, "tasks": tasks}]))
    settings = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local", "--diff", book],
        env={**os.environ, **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not secret or secret not in done.stdout + done.stderr
    lines = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.lstrip().startswith('"msg": "{')]
    return [json.loads(json.loads(line)) for line in lines]
