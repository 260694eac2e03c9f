#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/criteria.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: criteria
short_description: Measures the criteria of a plan
version_added: 0.1.0
author: The balik developers
description:
  - Measures all criteria at once, each with its limit, and judges them. Missing data is C(unknown), never C(safe).
options:
  run:
    description: The run's id.
    type: str
    default: ""
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Measure
  balik.rollback.criteria:
  register: found
"""

RETURN = r"""
verdict: {description: "safe, unsafe or unknown.", type: str, returned: success}
scope: {description: What the unsafe criteria touch., type: list, elements: str, returned: success}
remedy: {description: The fastest remedy that covers the scope., type: str, returned: success}
ask: {description: Whether there is something to decide., type: bool, returned: success}
hold: {description: The steps of the hold phase., type: list, elements: str, returned: success}
revert: {description: The steps of the remedy., type: list, elements: str, returned: success}
evaluation: {description: Every criterion with its evidence., type: dict, returned: success}
"""
