#!/usr/bin/python
# Licence: Apache-2.0 (see LICENSE)
"""Documentation and main() of the module; the work is done in module_utils/prisma/draft.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prisma_draft
short_description: Drafts the missing down.sql files with Prisma's own migrate diff
description:
  - For a developer's machine. Asks C(prisma migrate diff) for the script from each migration back to the one before it,
    and writes it beside C(migration.sql) where there is no C(down.sql). Never touches one that is there.
  - A draft says above its statements what a person must look at, and begins with a line that
    M(balik.rollback.prisma_down) refuses, until somebody has read it and deleted that line.
version_added: 0.1.0
author: The balik authors
requirements:
  - python >= 3.9
  - psycopg >= 3.1 and pglast >= 7
  - Prisma 6 or 7 in the project's C(node_modules)
options:
  project:
    description: The project's folder, with C(node_modules).
    type: path
    required: true
  migrations:
    description: Its folder of migrations; by default C(prisma/migrations) in O(project).
    type: path
  shadow_url:
    description: An empty database that Prisma may fill and empty. One with anything in it is refused.
    type: str
    required: true
  limit:
    description: How long Prisma may take for one migration.
    type: str
    default: 2m
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Draft what is missing
  balik.rollback.prisma_draft:
    project: /src/hub
    shadow_url: postgresql://me@localhost/shadow
"""

RETURN = r"""
says:
  description: One sentence.
  type: str
  returned: success
drafts:
  description: The files that were (in check mode, would be) written.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path  # noqa: E402 - documentation comes first in a module
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.prisma import address, draft  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.units import parse_duration  # noqa: E402

OPTIONS: dict[str, Any] = {
    "project": {"type": "path", "required": True},
    "migrations": {"type": "path"},
    "shadow_url": {"type": "str", "required": True, "no_log": True},
    "limit": {"type": "str", "default": "2m"},
}


def main() -> None:
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    given = module.params
    folder = Path(given["project"])
    try:
        project = draft.Project(
            folder,
            Path(given["migrations"] or folder / "prisma" / "migrations"),
            address.read(given["shadow_url"], "prisma_draft_shadow_url"),
            given["shadow_url"],
            parse_duration(given["limit"], "prisma_draft_limit"),
        )
        result = draft.write(project, module.check_mode)
    except BalikError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
