#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/record.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: record
short_description: Reads the record of rollbacks
version_added: 0.1.0
author: The balik developers
description:
  - V(status) says who holds the lock, what was decided, which steps are done and whom the run waits for.
  - V(entries) shows the entries. V(verified) computes the chain anew. All fail when the chain is broken.
  - V(saved) returns what a step saved before a run changed anything, for a playbook that starts the step's C(undo).
options:
  state:
    description: What is asked.
    type: str
    choices: [status, entries, saved, verified]
    required: true
  head:
    description: A hash that was kept elsewhere, which the record must contain.
    type: str
    default: ""
  run:
    description: The run's id; with O(state=saved) it must be given.
    type: str
    default: ""
  step:
    description: Whose saved state is asked for with O(state=saved), such as C(prisma-down).
    type: str
    default: ""
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Is the chain whole
  balik.rollback.record:
    state: verified
"""

RETURN = r"""
status: {description: Where the newest run is., type: dict, returned: when O(state=status)}
saved:
  description: By host, what the step's C(check) found before its first start, and what later starts found beside it.
  type: dict
  returned: when O(state=saved)
head: {description: The newest hash., type: str, returned: when O(state=verified)}
"""
