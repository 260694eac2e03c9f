#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/plan.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Checks a rollback plan and the settings of its steps
version_added: 0.1.0
author: The balik developers
description:
  - Reads all C(rollback_*) variables and the argument specs of the step roles that the plan names.
  - Fails with every problem at once, each with its file, key path, what was found and what was expected.
  - Nothing is touched before.
options: {}
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Check the plan
  balik.rollback.plan:
"""

RETURN = r"""
says: {description: What the plan has., type: str, returned: success}
"""
