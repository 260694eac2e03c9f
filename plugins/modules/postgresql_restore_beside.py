#!/usr/bin/python
"""A PostgreSQL database restored beside, or some of its tables put back; the logic is in module_utils/database."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_restore_beside
short_description: Restores a PostgreSQL database beside the live one and swaps the two, or puts some of its tables back
description:
  - Takes a backup of what is live, restores the wanted backup into a new database, proves it, and renames both in one
    transaction. The live database is not touched before, and is kept under another name after.
  - With O(scope=tables), puts single tables of the live database back instead, or drops new ones, in one transaction.
  - Existing modules restore into the live database, and run C(psql) without C(ON_ERROR_STOP), so that a dump that
    failed half way is reported as a success.
version_added: 0.1.0
author: balik
requirements:
  - psycopg 3 for Python (Debian's python3-psycopg)
  - psql, pg_dump, pg_restore and vacuumdb of the server's version
  - gzip or zstd for backups that are compressed so
extends_documentation_fragment:
  - balik.rollback.postgresql
options:
  state:
    description:
      - V(ready) reads only, and fails when the restore could not be carried out.
      - V(restored) does it, once for each O(run).
      - V(verified) reads again, and fails when the live database is not the restored one.
      - V(undone) swaps the kept database back, and keeps the restored one.
    type: str
    choices: [ready, restored, verified, undone]
    required: true
  database:
    description: The database.
    type: str
    required: true
  run:
    description: The run's name. It stands in the names of all that is made, and makes a second call change nothing.
    type: str
    required: true
  backup:
    description:
      - Path of the backup on this host. Plain SQL, the same compressed with gzip or zstd, or pg_dump's custom
        or directory format, judged by content.
      - Not needed where tables are only dropped.
      - M(balik.rollback.database_backup) finds the one that is meant.
    type: str
    default: ""
  checksum:
    description: SHA-256 of the backup in hex. Where it is empty and a file O(backup).sha256 is there, that one holds.
    type: str
    default: ""
  backup_dir:
    description: Folder for the backup of what is live now.
    type: path
    required: true
  jobs:
    description:
      - How many processes dump and restore at a time; 0 for one per processor. Of a plain dump, that many sessions take
        a large table's rows, which then lie in another order than in the dump.
    type: int
    default: 0
  limit:
    description: How long one call may take.
    type: str
    default: 2h
  checks:
    description: What must hold in the restored copy before it is swapped in, and afterwards.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What it is called in messages.
        type: str
      query:
        description: SQL whose first column of the first row is compared. It is run in a transaction that cannot write.
        type: str
        required: true
      expect:
        description: The value.
        type: raw
        required: true
  session_settings:
    description: Settings for the sessions that restore, nobody else's.
    type: dict
    default: {}
  inspect:
    description: Whether V(ready) reads the whole backup, or only its beginning and its end.
    type: bool
    default: true
  compare:
    description: Whether each table's rows are compared with the backup's, by checksum, before the copy is swapped in.
    type: bool
    default: true
  amcheck:
    description:
      - What C(pg_amcheck) looks at in the copy, where server and role have it. V(heapallindexed) also proves that each
        row is in each index, and takes three times as long.
    type: str
    choices: [never, indexes, heapallindexed]
    default: indexes
  accept:
    description: Differences between the backup and the live database that are wanted, as the messages name them.
    type: list
    elements: str
    default: []
  long_transaction:
    description: V(ready) names the transactions on the live database that are older.
    type: str
    default: 5m
  scope:
    description: V(database) restores all of it; V(tables) puts O(tables) back in the live one and drops O(drop_tables).
    type: str
    choices: [database, tables]
    default: database
  tables:
    description:
      - With O(scope=tables), the tables that get the backup's rows, each with its schema. A part with a dot or a quote
        in it is quoted as in SQL; capitals count.
    type: list
    elements: str
    default: []
  drop_tables:
    description: With O(scope=tables), the tables and views of the release that are dropped. They are kept.
    type: list
    elements: str
    default: []
  definitions:
    description:
      - What is done where one of O(tables) is defined otherwise than in the backup. V(keep) puts only the rows back,
        and new columns get their defaults. V(restore) also takes new columns, indexes, constraints and triggers away,
        and brings missing ones back.
    type: str
    choices: [refuse, keep, restore]
    default: refuse
  lock_limit:
    description: How long to wait for a lock on a table that another session holds.
    type: str
    default: 10s
  pgbouncer:
    description:
      - The admin consoles of the PgBouncers in front, as libpq writes connections. Each is paused for the swap, and
        resumed by a process of its own, also if this module is killed meanwhile.
    type: list
    elements: str
    default: []
  pgbouncer_limit:
    description: How long open transactions may take to end while new ones wait. The swap ends those that are left.
    type: str
    default: 10s
  ignore_space:
    description: Whether to go on when the estimate says that the disk is too small.
    type: bool
    default: false
  keep_failed:
    description: Whether the copy stays for a look at it when the restore failed. The next start of the run drops it.
    type: bool
    default: false
  fetched:
    description: For V(ready), whether the backup is on this host. Where it is not yet, only the server is looked at.
    type: bool
    default: true
  early:
    description:
      - For V(ready), whether it comes before the decision. The steps before this one may change that the server does
        not answer, which does not forbid the restore then; and the backup is not read to its end.
    type: bool
    default: false
  after_down:
    description: With O(early), whether the same remedy goes down in migrations, which may bring tables back.
    type: bool
    default: false
  saved:
    description: What V(ready) returned as RV(before) at the start of this run.
    type: dict
    default: {}
  login_user:
    description:
      - A superuser, or a role with C(CREATEDB), membership in the owner's role and in C(pg_signal_backend); also with
        C(BYPASSRLS) where row-level security would hide rows from it.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says what would be done.
    support: full
  diff_mode:
    description: The databases' names and oids.
    support: full
"""

EXAMPLES = r"""
- name: Restore the snapshot of before go-live
  balik.rollback.postgresql_restore_beside:
    state: restored
    database: lawyers_hub
    run: "{{ rollback_run_id }}"
    backup: /backups/pre-golive-snapshot-20260110.sql
    backup_dir: /backups/rollback
    checks:
      - {name: documents, query: SELECT count(*) > 0 FROM documents, expect: true}
"""

RETURN = r"""
says:
  description: One sentence for the operator.
  type: str
  returned: success
before:
  description: What stood there, with V(ready).
  type: dict
  returned: with V(ready)
evidence:
  description: What was found and measured.
  type: dict
  returned: success
"""

from typing import Any  # noqa: E402  # documentation comes first in a module

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.database import restore, tables  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.database.arguments import (  # noqa: E402
    CONNECTION,
    access_of,
)
from ansible_collections.balik.rollback.plugins.module_utils.database.task import (  # noqa: E402
    Task,
    application,
)
from ansible_collections.balik.rollback.plugins.module_utils.errors import (  # noqa: E402
    BalikError,
    SchemaUnfit,
    Unreachable,
)
from ansible_collections.balik.rollback.plugins.module_utils.units import parse_duration  # noqa: E402

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["ready", "restored", "verified", "undone"], "required": True},
    "database": {"type": "str", "required": True},
    "run": {"type": "str", "required": True},
    "backup": {"type": "str", "default": ""},
    "checksum": {"type": "str", "default": ""},
    "backup_dir": {"type": "path", "required": True},
    "jobs": {"type": "int", "default": 0},
    "limit": {"type": "str", "default": "2h"},
    "checks": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str"},
            "query": {"type": "str", "required": True},
            "expect": {"type": "raw", "required": True},
        },
    },
    "session_settings": {"type": "dict", "default": {}},
    "inspect": {"type": "bool", "default": True},
    "compare": {"type": "bool", "default": True},
    "amcheck": {"type": "str", "choices": ["never", "indexes", "heapallindexed"], "default": "indexes"},
    "accept": {"type": "list", "elements": "str", "default": []},
    "long_transaction": {"type": "str", "default": "5m"},
    "scope": {"type": "str", "choices": ["database", "tables"], "default": "database"},
    "tables": {"type": "list", "elements": "str", "default": []},
    "drop_tables": {"type": "list", "elements": "str", "default": []},
    "definitions": {"type": "str", "choices": ["refuse", "keep", "restore"], "default": "refuse"},
    "lock_limit": {"type": "str", "default": "10s"},
    "pgbouncer": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "pgbouncer_limit": {"type": "str", "default": "10s"},
    "ignore_space": {"type": "bool", "default": False},
    "keep_failed": {"type": "bool", "default": False},
    "fetched": {"type": "bool", "default": True},
    "early": {"type": "bool", "default": False},
    "after_down": {"type": "bool", "default": False},
    "saved": {"type": "dict", "default": {}},
    **CONNECTION,
}


def task(options: dict[str, Any]) -> Task:
    return Task(
        access=access_of(options, application(options["run"], options["database"])),
        database=options["database"],
        run=options["run"],
        source=options["backup"],
        checksum=options["checksum"],
        folder=options["backup_dir"],
        jobs=options["jobs"],
        limit=parse_duration(options["limit"], "db_restore_limit"),
        checks=options["checks"],
        settings=options["session_settings"],
        maintenance=options["maintenance_database"],
        programs=options["bin_dir"],
        inspect=options["inspect"] and not options["early"],
        compare=options["compare"],
        amcheck=options["amcheck"],
        accept=options["accept"],
        long_transaction=parse_duration(options["long_transaction"], "db_restore_long_transaction"),
        tables=options["tables"],
        drop_tables=options["drop_tables"],
        definitions=options["definitions"],
        lock_limit=parse_duration(options["lock_limit"], "db_restore_lock_limit"),
        pgbouncer=options["pgbouncer"],
        pgbouncer_limit=parse_duration(options["pgbouncer_limit"], "db_restore_pgbouncer_limit"),
        ignore_space=options["ignore_space"],
        keep_failed=options["keep_failed"],
        fetched=options["fetched"],
        saved=options["saved"],
    )


def main() -> None:
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    state = module.params["state"]
    scope = {"database": restore, "tables": tables}[module.params["scope"]]
    try:
        wanted = task(module.params)
        if state == "ready":
            result = scope.check(wanted)
        elif state == "verified":
            result = scope.verify(wanted)
        else:
            result = {"restored": scope.restore, "undone": scope.undo}[state](wanted, module.check_mode)
    except BalikError as error:
        may_change = (Unreachable, SchemaUnfit) if module.params["after_down"] else Unreachable
        if not module.params["early"] or not isinstance(error, may_change):
            module.fail_json(msg=str(error))
        module.warn(f"{error} So it would be refused now. It is looked at again when its turn comes.")
        result = {"says": f"{error}: so it would be refused now", "before": {}}
    module.exit_json(**{"changed": False, **result})


if __name__ == "__main__":
    main()
