#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/answer.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: answer
short_description: Records one person's word
version_added: 0.1.0
author: The balik developers
description:
  - Go or No-Go on a rollback, a sign-off or its refusal, a statement on a criterion; in a role, with a reason.
options:
  role:
    description: The role of C(rollback_people) in which the person answers.
    type: str
    required: true
  answer:
    description: What they say, one of V(go), V(no-go), V(sign-off), V(refuse), V(unsafe), V(safe).
    type: str
    required: true
  reason:
    description: Why, in a sentence.
    type: str
    required: true
  by:
    description: Who; the AWX user or the shell's user where it is empty.
    type: str
    default: ""
  item:
    description: The sign-off or the criterion.
    type: str
    default: ""
  remedy:
    description: The remedy that a Go is for; any when empty.
    type: str
    default: ""
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Go
  balik.rollback.answer:
    role: lead-engineer
    answer: go
    reason: Every eighth request fails
"""

RETURN = r"""
says: {description: What was written down., type: str, returned: success}
"""
