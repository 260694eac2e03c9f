#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/run.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run
short_description: Opens and closes a run of a rollback
version_added: 0.1.0
author: The balik developers
description:
  - V(opened) takes the lock of the product, and opens a run or takes up the one that was left.
  - V(closed) writes the outcome into the record and C(outcome.json), and gives the lock back.
options:
  state:
    description: What is to be true.
    type: str
    choices: [opened, closed]
    required: true
  run:
    description: The run's id.
    type: str
    default: ""
  decision:
    description: What M(balik.rollback.decision) returned; for O(state=closed).
    type: dict
    default: {}
  failure:
    description: Why the rollback failed; empty when it did not.
    type: str
    default: ""
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Open a run
  balik.rollback.run:
    state: opened
"""

RETURN = r"""
good: {description: Whether the outcome is rolled-back or nothing-to-do., type: bool, returned: when closed}
held: {description: Whether somebody else's run holds the lock., type: bool, returned: when closed without an outcome}
outcome: {description: "One of rolled-back, nothing-to-do, not-decided, failed.", type: str, returned: when closed}
run: {description: The run's name in the record., type: str, returned: when opened}
says: {description: One sentence., type: str, returned: always}
"""
