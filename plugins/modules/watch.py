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
  - Samples from before the traffic was given back do not count, nor do statements from before it was given back first
    in this run; what was measured and said between an earlier call's watch and this one does.
options:
  moment:
    description:
      - V(given-back) watches until the procedure's watch time is over, or the criteria are unsafe.
      - V(failed) says what becomes of traffic that could not be given back. Where visitors had the application before
        this call, it looks once, and only criteria that are unsafe take it from them; else that is V(unsafe).
    type: str
    choices: [given-back, failed]
    required: true
  run:
    description: The run's id.
    type: str
    required: true
  procedure:
    description: The procedure whose watch it is.
    type: str
    required: true
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Watch
  balik.rollback.watch:
    moment: given-back
    run: "{{ rollback_run_id }}"
    procedure: standard
  register: watch
"""

RETURN = r"""
verdict: {description: "safe, unsafe or unknown.", type: str, returned: success}
says: {description: What was seen., type: str, returned: success}
"""
