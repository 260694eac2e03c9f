#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/decision.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: decision
short_description: Waits for people's Go or No-Go
version_added: 0.1.0
author: The balik developers
description:
  - Nothing to do where the criteria are safe and nobody wishes a rollback (C(rollback_reason)).
  - Otherwise waits for the roles that plan, procedure and remedy name, tells them, and ends at the plan's limit.
  - C(rollback_break_glass) goes without them and writes down why.
options:
  run:
    description: The run's id.
    type: str
    required: true
  verdict:
    description: What the criteria say.
    type: str
    choices: [safe, unsafe, unknown]
    required: true
  says:
    description: The criteria's reason.
    type: str
    default: ""
  remedy:
    description: The remedy that is decided on.
    type: str
    required: true
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Decide
  balik.rollback.decision:
    run: "{{ rollback_run_id }}"
    verdict: unsafe
    remedy: deployment
"""

RETURN = r"""
outcome: {description: "go, nothing-to-do or not-decided.", type: str, returned: success}
steps: {description: The steps by phase., type: dict, returned: success}
reason: {description: Who said what., type: str, returned: success}
"""
