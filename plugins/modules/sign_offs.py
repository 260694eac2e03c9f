#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/sign_offs.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sign_offs
short_description: Waits for the sign-offs that a phase needs
version_added: 0.1.0
author: The balik developers
description:
  - Fails when somebody refuses, or says nothing within the limit; the maintenance page stays on.
  - At the end of the verification it fails, too, while what somebody stated as unsafe in an earlier watch of the run
    was not taken back.
options:
  run:
    description: The run's id.
    type: str
    required: true
  phase:
    description: The phase that ends.
    type: str
    choices: [hold, revert, verify, restore]
    required: true
  remedy:
    description: The remedy that is carried out; some sign-offs are asked for some remedies only.
    type: str
    required: true
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Sign-offs
  balik.rollback.sign_offs:
    run: "{{ rollback_run_id }}"
    phase: verify
    remedy: deployment
"""

RETURN = r"""
says: {description: Who signed off., type: str, returned: success}
"""
