#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/loss.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: loss
short_description: Tells people what a restore or a way down would lose, and writes it into the record
version_added: 0.1.0
author: The balik developers
description:
  - V(asked) says which hosts are to be asked with M(balik.rollback.database_loss) before a decision, and for how long.
    None where the remedy restores no database. And those to be asked with M(balik.rollback.prisma_down) what going down
    would destroy.
  - V(told) says what they answered, and writes it into the record of the run.
  - V(due) says which hosts have restored a database in the run, so that what was lost is to be exported there.
  - V(kept) says what was exported, and writes it into the record of the run.
options:
  moment:
    description: What is wanted.
    type: str
    choices: [asked, told, due, kept]
    required: true
  run:
    description: The run's id; empty for none, and with V(due) and V(kept) for the newest one.
    type: str
    default: ""
  remedy:
    description: The remedy that would be decided on; empty for any.
    type: str
    default: ""
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Whom to ask
  balik.rollback.loss:
    moment: asked
    run: "{{ rollback_run_id }}"
    remedy: database
"""

RETURN = r"""
hosts: {description: The hosts., type: list, elements: str, returned: with V(asked) and V(due)}
down: {description: The hosts that would go down from migrations., type: list, elements: str, returned: with V(asked)}
settings: {description: What the plan says of it., type: dict, returned: with V(asked) and V(due)}
backups: {description: The backup that was restored on each host., type: dict, returned: with V(due)}
says: {description: What was said., type: list, elements: str, returned: with V(told) and V(kept)}
"""
