#!/usr/bin/python
"""What restoring a backup would lose; the thinking stands in module_utils/loss."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_loss
short_description: Says which rows of a PostgreSQL database restoring a backup would lose, and keeps them as files
description:
  - Loads the backup into a database beside, without indexes and constraints, compares it with the live one table by
    table and row by row, and drops it again. The live database is only read, as of one moment.
  - Where that cannot be done within O(limit), columns that say when a row was written tell, and else the server's own
    counters; each figure says what it comes from. What is not known is null, and never 0.
version_added: 0.1.0
author: balik
requirements:
  - psql, pg_dump and pg_restore of the server's version
  - gzip or zstd for backups that are compressed so
extends_documentation_fragment:
  - balik.rollback.postgresql
  - balik.rollback.backup_place
options:
  state:
    description:
      - V(told) says what would be lost.
      - V(exported) compares the database that was replaced by O(run), which takes no connections but this one's, with
        the backup, and writes what differs into files. With O(live) it compares what is live now.
    type: str
    choices: [told, exported]
    required: true
  database:
    description: The database.
    type: str
    required: true
  run:
    description: The run's name. It stands in the names of what is made; empty for a new one.
    type: str
    default: ""
  backup:
    description:
      - Where the backup is, as with O(balik.rollback.database_backup#module:place). From another place it is fetched
        first, within O(limit). Empty where O(tables) are dropped and nothing is restored.
    type: str
    default: ""
  live:
    description: With O(state=exported), whether the live database is exported instead of the one that was replaced.
    type: bool
    default: false
  folder:
    description: Folder of this host for what is exported, in one of the run's own, and for a backup that is fetched.
    type: path
    default: ""
  exact:
    description:
      - V(auto) compares where there is room for a copy of the database on the server's disk.
      - V(always) compares without looking for room; V(never) leaves it to columns of times and counters.
    type: str
    choices: [auto, always, never]
    default: auto
  accept:
    description: "C(database NAME): by its manifest, the backup may be of that one, too."
    type: list
    elements: str
    default: []
  limit:
    description: How long the comparison may take; V(0) for no comparison.
    type: str
    default: 2m
  times:
    description: "The columns that say when a row was created and updated, by table; and the zone of those without one."
    type: dict
    default: {}
  tables:
    description: Only these tables, C(schema.table), or C(table) for the schema public.
    type: list
    elements: str
    default: []
  drop_tables:
    description: Likewise; those that the restore drops.
    type: list
    elements: str
    default: []
  jobs:
    description: How many processes load an archive; 0 for one per processor.
    type: int
    default: 0
  session_settings:
    description: Settings for these sessions only.
    type: dict
    default: {}
  login_user:
    description: A superuser, or a role that may read all tables and has C(CREATEDB).
    type: str
    default: ""
attributes:
  check_mode:
    description: Reads, and makes no database to compare with, so that only times and counters tell.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: Say what restoring the snapshot would lose
  balik.rollback.database_loss:
    state: told
    database: lawyers_hub
    backup: /backups/pre-golive-snapshot-YYYYMMDD.sql
    golive: 2026-01-10T20:00:00+07:00
    limit: 2m
"""

RETURN = r"""
says:
  description: The statement, line by line.
  type: list
  elements: str
  returned: success
lost:
  description: The statement; its keys are described in module_utils/loss/statement.py.
  type: dict
  returned: with V(told)
exported:
  description: The manifest of the files, with their folder.
  type: dict
  returned: with V(exported)
"""

import os  # noqa: E402  # documentation comes first in a module
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.backups.fetching import Found, fetch  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.backups.places import (  # noqa: E402
    PLACE,
    Options,
    place_of,
)
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Deadline  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.database.arguments import (  # noqa: E402
    CONNECTION,
    access_of,
)
from ansible_collections.balik.rollback.plugins.module_utils.database.catalog import names  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.loss.export import export, told  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.loss.statement import Asked, statement  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.units import parse_duration, utc_now  # noqa: E402

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["told", "exported"], "required": True},
    "database": {"type": "str", "required": True},
    "run": {"type": "str", "default": ""},
    "backup": {"type": "str", "default": ""},
    "live": {"type": "bool", "default": False},
    "folder": {"type": "path", "default": ""},
    "accept": {"type": "list", "elements": "str", "default": []},
    **PLACE,
    "exact": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
    "limit": {"type": "str", "default": "2m"},
    "times": {"type": "dict", "default": {}},
    "tables": {"type": "list", "elements": "str", "default": []},
    "drop_tables": {"type": "list", "elements": "str", "default": []},
    "jobs": {"type": "int", "default": 0},
    "session_settings": {"type": "dict", "default": {}},
    **CONNECTION,
}


def brought(options: dict[str, Any], dry: bool) -> Found:
    """The backup on this host, which it is brought to first.

    :raises BalikError: it cannot be had, or is not what its manifest says.
    """
    place, name = place_of(options["backup"], Options(options["ssh_options"], options["s3"] or {}))
    deadline = Deadline(parse_duration(options["limit"], "rollback_loss.limit"), setting="rollback_loss: {limit: …}")
    found = fetch(
        place, name, options["golive"], Path(options["folder"]), deadline, options["database"], dry, options["accept"]
    )
    if dry and found.changed:
        raise BalikError("the backup", found.says)
    return found


def asked(options: dict[str, Any], path: str, warning: str) -> Asked:
    run = options["run"] or f"{utc_now():%Y%m%dT%H%M%SZ}-{os.getpid()}"
    return Asked(
        access=access_of(options, f"balik loss {run}"),
        database=options["database"],
        run=run,
        backup=path,
        limit=parse_duration(options["limit"], "rollback_loss.limit"),
        exact=options["exact"],
        times=options["times"],
        only=[*options["tables"], *options["drop_tables"]],
        maintenance=options["maintenance_database"],
        programs=options["bin_dir"],
        jobs=options["jobs"] or min(os.cpu_count() or 1, 8),
        settings=options["session_settings"],
        notes=[warning] if warning else [],
    )


def main() -> None:
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    try:
        path, unfit, warning = module.params["backup"], "", ""
        try:
            if path:
                found = brought(module.params, module.check_mode)
                path, warning = str(found.path), found.warning
        except BalikError as error:
            if module.params["state"] == "exported":
                raise
            unfit = str(error)
        wanted = asked(module.params, path, warning)
        if module.params["state"] == "told":
            lost = statement(wanted, not module.check_mode, unfit)
            module.exit_json(changed=False, says=lost["says"], lost=lost)
        kept = "" if module.params["live"] else names(wanted.database, wanted.run).kept
        if module.check_mode:
            says = f"would export what {kept or wanted.database} has beyond {wanted.backup}"
            module.exit_json(changed=True, says=[says], exported={})
        exported = export(wanted, module.params["folder"], kept)
    except BalikError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=exported.pop("changed"), says=told(exported), exported=exported)


if __name__ == "__main__":
    main()
