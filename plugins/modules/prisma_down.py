#!/usr/bin/python
# Licence: Apache-2.0 (see LICENSE)
"""Documentation and main() of the module; the work is done in module_utils/prisma."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prisma_down
short_description: Goes down from Prisma's migrations, by the down.sql beside each migration.sql
description:
  - Goes from what is applied down to the migration that O(to) names, newest first. Each migration in one transaction,
    under Prisma's own advisory lock, together with its row of C(_prisma_migrations).
  - Compares the database with the folder, reads every script with PostgreSQL's own grammar, counts the rows that would
    be lost, and refuses all that is not known to be right before anything is touched.
  - Prisma has no C(down), and C(prisma migrate resolve --rolled-back) takes failed migrations only.
version_added: 0.1.0
author: The balik authors
requirements:
  - python >= 3.9
  - psycopg >= 3.1 and pglast >= 7 (both are in this project's environment, so run it on the control node)
  - For O(docker_hosts) the Docker SDK for Python; for O(namespaces) the Kubernetes client
options:
  entry:
    description:
      - V(check) reads and counts, V(main) goes down, V(verify) reads again, V(undo) applies again what went down.
    type: str
    choices: [check, main, verify, undo]
    required: true
  run_id:
    description: The run's name; what is kept stands in a folder of this name.
    type: str
    required: true
  url:
    description: The database, as Prisma's C(DATABASE_URL) has it, with C(?schema=). No pooler.
    type: str
    required: true
  migrations:
    description: The new release's folder C(prisma/migrations), with the C(down.sql) files in it.
    type: path
    required: true
  to:
    description: The migration that stays the newest, or V(no-migration) when none is to stay.
    type: str
    required: true
  destroys:
    description: The migrations whose way down may destroy rows. What it destroys is kept in O(keep_dir) first.
    type: list
    elements: str
    default: []
  outside_transaction:
    description: The migrations whose statements that no transaction can hold may be run before the others.
    type: list
    elements: str
    default: []
  schemas:
    description: Schemas that a C(down.sql) may name beside the URL's.
    type: list
    elements: str
    default: []
  leave_additive:
    description: Leave those right above O(to) that only add to the schema, with which the old release can live.
    type: bool
    default: false
  order:
    description:
      - V(strict) refuses migrations that were applied in another order than that of their names. V(applied) goes down
        in the reverse order of their application.
    type: str
    choices: [strict, applied]
    default: strict
  keep_dir:
    description: Folder for what would be lost; for its owner only.
    type: path
    required: true
  lock_timeout:
    description: How long to wait for another session's lock.
    type: str
    default: 5s
  limit:
    description: How long all of it may take.
    type: str
    default: 10m
  count_limit:
    description: How long one count may take; what is not counted by then is unknown, and never none.
    type: str
    default: 30s
  new_images:
    description: The new release's images. While a container or a pod runs one, nothing goes down.
    type: list
    elements: str
    default: []
  docker_hosts:
    description: The Docker engines to look at.
    type: list
    elements: str
    default: []
  docker_cert_path:
    description: Folder with ca.pem, cert.pem and key.pem for TLS over TCP.
    type: path
  namespaces:
    description: The Kubernetes namespaces to look at.
    type: list
    elements: str
    default: []
  kubeconfig:
    description: The cluster's kubeconfig, if not the usual one.
    type: path
  context:
    description: Its context, if not the current one.
    type: str
  early:
    description:
      - For V(check), whether it comes before the decision. What the steps before this one may change does not forbid
        going down then, that the new release runs and that the database does not answer.
    type: bool
    default: false
  saved:
    description: What V(check) gave back as C(before) the first time in this run. V(undo) refuses without it.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Go down to what the stable release knows
  balik.rollback.prisma_down:
    entry: main
    run_id: "{{ rollback_run_id }}"
    url: "{{ database_url }}"
    migrations: /srv/releases/2.0.0/prisma/migrations
    to: 20251201000000_documents
    keep_dir: /var/backups/balik
"""

RETURN = r"""
says:
  description: One sentence for the operator and the report.
  type: str
  returned: success
before:
  description: For V(check), the migrations that go and their rows of C(_prisma_migrations).
  type: dict
  returned: check
evidence:
  description: By migration what was lost, where it is kept, and how long it took; what was left; what is worth knowing.
  type: dict
  returned: success
"""

from typing import Any  # noqa: E402 - documentation comes first in a module

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.errors import (  # noqa: E402
    BalikError,
    Unreachable,
)
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, down  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.prisma.workload import Places  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.units import parse_duration  # noqa: E402

_LIST: dict[str, Any] = {"type": "list", "elements": "str", "default": []}
OPTIONS: dict[str, Any] = {
    "entry": {"type": "str", "choices": ["check", "main", "verify", "undo"], "required": True},
    "run_id": {"type": "str", "required": True},
    "url": {"type": "str", "required": True, "no_log": True},
    "migrations": {"type": "path", "required": True},
    "to": {"type": "str", "required": True},
    "destroys": _LIST,
    "outside_transaction": _LIST,
    "schemas": _LIST,
    "leave_additive": {"type": "bool", "default": False},
    "order": {"type": "str", "choices": ["strict", "applied"], "default": "strict"},
    "keep_dir": {"type": "path", "required": True},
    "lock_timeout": {"type": "str", "default": "5s"},
    "limit": {"type": "str", "default": "10m"},
    "count_limit": {"type": "str", "default": "30s"},
    "new_images": _LIST,
    "docker_hosts": _LIST,
    "docker_cert_path": {"type": "path"},
    "namespaces": _LIST,
    "kubeconfig": {"type": "path"},
    "context": {"type": "str"},
    "early": {"type": "bool", "default": False},
    "saved": {"type": "dict", "default": {}},
}


def task(options: dict[str, Any], check_mode: bool) -> down.Task:
    """What the arguments mean.

    :raises BalikError: a URL or a duration that is none.
    """
    return down.Task(
        address=address.read(options["url"]),
        migrations=options["migrations"],
        to=options["to"],
        run=options["run_id"],
        keep_dir=options["keep_dir"],
        schemas=options["schemas"],
        destroys=options["destroys"],
        outside_transaction=options["outside_transaction"],
        leave_additive=options["leave_additive"],
        order=options["order"],
        lock_timeout=parse_duration(options["lock_timeout"], "prisma_down_lock_timeout"),
        limit=parse_duration(options["limit"], "prisma_down_limit"),
        count_limit=parse_duration(options["count_limit"], "prisma_down_count_limit"),
        places=Places(
            options["new_images"],
            options["docker_hosts"],
            options["docker_cert_path"] or "",
            options["namespaces"],
            options["kubeconfig"] or "",
            options["context"] or "",
        ),
        saved=options["saved"],
        rehearsal=check_mode or options["early"],
    )


def main() -> None:
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    entry = module.params["entry"]
    try:
        wanted = task(module.params, module.check_mode)
        if entry in ("check", "verify"):
            result = {"check": down.check, "verify": down.verify}[entry](wanted)
        else:
            result = {"main": down.main, "undo": down.undo}[entry](wanted, module.check_mode)
    except BalikError as error:
        if not module.params["early"] or not isinstance(error, Unreachable):
            module.fail_json(msg=str(error))
        module.warn(f"{error} So it would be refused now. It is looked at again when its turn comes.")
        result = {"says": f"{error}: so it would be refused now", "before": {}}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
