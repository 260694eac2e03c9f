#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/gitops_resume.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gitops_resume
short_description: Lets the role gitops-resume run after a rollback, by the record and into it
version_added: 0.1.0
author: The balik developers
description:
  - V(asked) says on which hosts the role runs, and what the record says that this product's rollbacks have held off. It
    is refused while a rollback is running, or has not ended and would be gone on with.
  - V(checked) writes down who begins, and keeps rollbacks from beginning until V(told).
  - V(told) writes down what came of it, with who did it, so that status and report do not say any more that it is held
    off.
options:
  moment:
    description: Before the role, after its check, or after it.
    type: str
    choices: [asked, checked, told]
    required: true
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: See whom to ask
  balik.rollback.gitops_resume:
    moment: asked
  run_once: true
"""

RETURN = r"""
hosts: {description: The hosts., type: list, elements: str, returned: with V(asked)}
run_saved: {description: For each host, C(rollback_run_saved) of the role., type: dict, returned: with V(asked)}
says: {description: What was done., type: str, returned: with V(told)}
"""
