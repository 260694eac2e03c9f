#!/usr/bin/python
"""Backups by name: made, found and fetched; the thinking stands in module_utils/backups."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_backup
short_description: Makes a PostgreSQL backup with a manifest, finds the one that is meant, or fetches it to this host
description:
  - Names are like C(pre-golive-snapshot-YYYYMMDD.sql). The one that is meant is the newest of before go-live; its
    manifest decides when it was taken, else its name, else the file's time. Every other one is named, with the reason.
  - A manifest beside a backup says what it was when it was made. What is read is compared with it, and each
    difference named.
version_added: 0.1.0
author: balik
requirements:
  - psql, pg_dump and pg_restore of the server's version, with V(made)
  - OpenSSH's client for C(ssh://)
  - boto3 for C(s3://)
extends_documentation_fragment:
  - balik.rollback.postgresql
  - balik.rollback.backup_place
options:
  state:
    description:
      - V(made) dumps the database under a name that must be free, with rows counted at the same moment.
      - V(found) only says which backup is meant.
      - V(fetched) brings it to a folder in O(folder) that is this place's alone, if it is not on this host already, and
        compares it with its manifest.
    type: str
    choices: [made, found, fetched]
    required: true
  place:
    description:
      - "C(/folder/name) on this host, C(ssh://user@host/folder/name), or C(s3://bucket/prefix/name)."
      - The name may hold V(YYYYMMDD) or V(YYYY-MM-DD), and V(HHMM) or V(HHMMSS). With V(made), its ending says the
        format (C(.sql), C(.sql.gz), C(.sql.zst), C(.dump), C(.dir)), and a backup for a remote place is made in
        O(folder) first.
    type: str
    required: true
  folder:
    description: Folder of this host for what is fetched, or is to be stored elsewhere.
    type: path
    default: ""
  database:
    description: The database. What is fetched must be of it, where its manifest says of which it is.
    type: str
    default: ""
  accept:
    description: "C(database NAME): what is fetched may be of that one, too. Other differences are not looked at here."
    type: list
    elements: str
    default: []
  limit:
    description: How long it may take.
    type: str
    default: 2h
  lock_limit:
    description: How long V(made) waits for a lock that another session holds, which is named then.
    type: str
    default: 10s
  ignore_space:
    description: Whether V(made) goes on when the estimate says that the disk is too small.
    type: bool
    default: false
  jobs:
    description: How many processes dump a directory; 0 for one per processor.
    type: int
    default: 0
  login_user:
    description: A role that may read all tables.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says what would be made or fetched, after having looked whether it could be.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: Make the snapshot before go-live
  balik.rollback.database_backup:
    state: made
    place: /backups/pre-golive-snapshot-YYYYMMDD.sql
    database: lawyers_hub

- name: Bring the one of before go-live here
  balik.rollback.database_backup:
    state: fetched
    place: s3://lawyers-hub-backups/daily/pre-golive-snapshot-YYYYMMDD.sql.gz
    golive: 2026-01-10T20:00:00+07:00
    folder: /var/backups/balik
"""

RETURN = r"""
says:
  description: One sentence for the operator.
  type: str
  returned: success
path:
  description: The backup on this host; with V(found) its name in the place.
  type: str
  returned: success
manifest:
  description: Its manifest; empty where it has none.
  type: dict
  returned: success
"""

import os  # noqa: E402  # documentation comes first in a module
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.backups.fetching import (  # noqa: E402
    fetch,
    folder_of,
    look,
)
from ansible_collections.balik.rollback.plugins.module_utils.backups.making import (  # noqa: E402
    Wanted,
    make,
    store,
)
from ansible_collections.balik.rollback.plugins.module_utils.backups.manifest import never_stored  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.backups.places import (  # noqa: E402
    PLACE,
    Local,
    Options,
    place_of,
)
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Deadline  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.database.arguments import (  # noqa: E402
    CONNECTION,
    access_of,
)
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.units import parse_duration  # noqa: E402

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["made", "found", "fetched"], "required": True},
    "place": {"type": "str", "required": True},
    "folder": {"type": "path", "default": ""},
    "database": {"type": "str", "default": ""},
    "accept": {"type": "list", "elements": "str", "default": []},
    "limit": {"type": "str", "default": "2h"},
    "lock_limit": {"type": "str", "default": "10s"},
    "ignore_space": {"type": "bool", "default": False},
    "jobs": {"type": "int", "default": 0},
    **PLACE,
    **CONNECTION,
}


def act(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    place, name = place_of(given["place"], Options(given["ssh_options"], given["s3"] or {}))
    limit = parse_duration(given["limit"], "limit")
    deadline = Deadline(limit)
    if given["state"] == "found":
        candidate, says, _warning = look(place, name, given["golive"])
        return {"changed": False, "path": candidate.name, "manifest": {}, "says": says}
    remote = not isinstance(place, Local)
    if remote and not given["folder"]:
        raise BalikError("folder", "not set", f"a folder of this host for what {place.title} has or gets")
    if given["state"] == "fetched":
        folder = Path(given["folder"])
        found = fetch(place, name, given["golive"], folder, deadline, given["database"], check_mode, given["accept"])
        return {
            "changed": found.changed,
            "path": str(found.path),
            "manifest": dict(found.manifest or {}),
            "says": found.says,
        }
    if not given["database"]:
        raise BalikError("database", "not set", "the database that is to be backed up")
    access = access_of(given, "balik backup")
    wanted = Wanted(
        access,
        given["database"],
        str(folder_of(place, Path(given["folder"])) / name) if remote else given["place"],
        given["golive"],
        given["jobs"] or min(os.cpu_count() or 1, 8),
        limit,
        parse_duration(given["lock_limit"], "lock_limit"),
        given["ignore_space"],
        given["maintenance_database"],
        given["bin_dir"],
        elsewhere=remote,
    )
    made = make(wanted, check_mode)
    if remote:
        path = Path(made["path"])
        made["says"] += f"; {store(place, path, deadline, check_mode)}{never_stored(path, name)}"
    return made


def main() -> None:
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    try:
        result = act(module.params, module.check_mode)
    except BalikError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
