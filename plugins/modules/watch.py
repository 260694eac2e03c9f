#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/watch.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: watch
short_description: Watches the criteria after the traffic was given back
version_added: 0.1.0
author: The balik developers
description:
  - Measures every interval of the procedure for its watch time; ends early when the criteria turn unsafe.
  - Samples and statements from before the traffic was given back in this run do not count; those between an earlier
    call's watch and this one do.
options:
  run:
    description: The run's id.
    type: str
    required: true
  procedure:
    description: The procedure whose watch it is.
    type: str
    required: true
  once:
    description: Look once, whatever the procedure's watch time is.
    type: bool
    default: false
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Watch
  balik.rollback.watch:
    run: "{{ rollback_run_id }}"
    procedure: standard
  register: watch
"""

RETURN = r"""
verdict: {description: "safe, unsafe or unknown.", type: str, returned: success}
says: {description: What was seen., type: str, returned: success}
"""
