#!/usr/bin/python
"""Documentation of an action; what it does stands in plugins/action/step.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: step
short_description: Keeps the record around one step
version_added: 0.1.0
author: The balik developers
description:
  - V(looked) says whether the step is to be done, confirmed or skipped.
  - V(confirmed) comes after a step that was done was verified anew.
  - V(ready) says what a check before the decision said, and keeps what it saw of a step of the hold phase, or why it
    cannot be done.
  - V(checked) writes C(started) with what stood there and what the check said, before anything is touched.
  - V(seen) comes after a look at the page that is up, before a step that must not have visitors.
  - V(finished) writes C(done) or C(failed).
  - Fails when a host of the step failed or could not be reached.
options:
  moment:
    description: Where in the step we are.
    type: str
    choices: [ready, looked, confirmed, checked, seen, finished]
    required: true
  run:
    description: The run's id.
    type: str
    required: true
  phase:
    description: The phase of the step.
    type: str
    choices: [hold, revert, verify, restore]
    required: true
  step:
    description: The role of the step.
    type: str
    required: true
attributes:
  action: {support: full, description: Runs on the control node, in Ansible's own process.}
  check_mode: {support: full, description: Reads and says what would be done; writes nothing.}
  diff_mode: {support: none, description: There is no text to compare.}
"""

EXAMPLES = r"""
- name: Look in the record
  balik.rollback.step:
    moment: looked
    run: "{{ rollback_run_id }}"
    phase: hold
    step: maintenance-page
"""

RETURN = r"""
todo: {description: "do, confirm or skip.", type: str, returned: looked and confirmed}
saved: {description: What stood on each host before., type: dict, returned: looked and checked}
page_hosts:
  description: Where the page is to be looked at before the step.
  type: list
  elements: str
  returned: looked
run_saved: {description: "The same of every step of the run, by host and step.", type: dict, returned: looked}
"""
