#!/usr/bin/python
# Licence: Apache-2.0 (see LICENSE)
"""Documentation only: the work is done on the control node, by the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Write the report of a rollback
description:
  - Reads one run from the product's record, and writes C(report.html), C(report.md) and C(report.json) into
    C(<rollback_state_dir>/<product>/reports/<run>/). Fails when the record was edited.
  - Head, timeline, criteria with their samples, decision, steps with their evidence, sign-offs, messages, the watch,
    the checklist, people and their tasks, the draft of a post-mortem, and how to prove that the record is whole; in the
    plan's language.
  - Works for any run, also one that failed, was never decided, or is still open. The same record gives the same bytes.
  - The HTML is one file without scripts or anything to load. Files are readable by their owner only. Addresses of
    people and secrets are not in them.
  - The keys of the JSON are described in C(plugins/module_utils/report/document.py).
version_added: 0.1.0
author: The balik authors
options:
  run:
    description: The run's name, such as V(20260110T130000Z-3f9a). Empty for the newest one.
    type: str
    default: ""
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.conn
attributes:
  action:
    support: full
  async:
    support: none
  become:
    support: none
  bypass_host_loop:
    support: none
  check_mode:
    support: full
    details: Nothing is written.
  connection:
    support: none
  delegation:
    support: none
  diff_mode:
    support: none
  platform:
    platforms: posix
notes:
  - The plan is read from the C(rollback_*) variables of the host that the task runs for.
"""

EXAMPLES = r"""
- name: Write the report of the newest run
  balik.rollback.report:
  run_once: true

- name: Write the report of one run again
  balik.rollback.report:
    run: 20260110T130000Z-3f9a
  run_once: true
"""

RETURN = r"""
run:
  description: The run that was reported.
  returned: always
  type: str
  sample: 20260110T130000Z-3f9a
outcome:
  description: V(rolled-back), V(nothing-to-do), V(not-decided), V(failed), V(abandoned), or V(open).
  returned: not in check mode
  type: str
  sample: rolled-back
paths:
  description: The files that were written.
  returned: not in check mode
  type: dict
  contains:
    html:
      description: For people.
      type: str
      sample: /home/ops/.balik/lawyers-hub/reports/20260110T130000Z-3f9a/report.html
    md:
      description: For tickets and wikis.
      type: str
    json:
      description: For machines.
      type: str
says:
  description: What was done, in a sentence.
  returned: always
  type: str
"""
