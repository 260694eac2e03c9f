#!/usr/bin/python
# Licence: Apache-2.0 (see LICENSE)
"""Documentation and main() of the module; the work is done in module_utils/smoke. An action plugin runs it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: smoke_test
short_description: Ask several systems at once whether they work
description:
  - Runs all checks at once, each with its own limit, tries those that fail again until O(limit), and names all that
    still fail in one message with what was found and what was expected.
  - Not C(ansible.builtin.uri) and C(wait_for) in a loop, which ask one after the other, stop at the first failure,
    and whose timeout starts again with each byte.
version_added: 0.1.0
author: The balik authors
requirements:
  - python >= 3.9
  - psycopg 3 (Debian's python3-psycopg), for C(postgresql) checks only
  - redis (Debian's python3-redis), for C(redis) checks only
options:
  entry:
    description:
      - V(check) reads the checks and looks for the libraries they need, and asks nobody. V(main) runs them until
        O(limit). V(verify) runs each once more.
    type: str
    choices: [check, main, verify]
    default: main
  limit:
    description: How long failing checks are tried again; a duration such as V(30s). Each is tried once at least.
    type: str
    default: 30s
  checks:
    description:
      - The checks. Each has exactly one of C(http), C(tcp), C(postgresql), C(redis), C(ai_gateway) and C(command).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the check is called in messages and the report; each its own.
        type: str
        required: true
      timeout:
        description: Limit of one try; default V(5s).
        type: str
      must:
        description:
          - V(not-answer) passes when nothing answers (refused, no answer in time), for C(http) and C(tcp). An C(http)
            check with C(expect) then passes with that answer too, V(404) for instance.
          - A name that is not known proves nothing, so that it fails.
        type: str
        choices: [answer, not-answer]
      http:
        description:
          - One request, or several in C(requests). C(<name>) in a URL, header, body or expected value stands for
            what an earlier request saved under this name, C(<unique>) for a text that is new in every run.
        type: dict
        suboptions:
          url: {description: "The URL, or what comes after C(base).", type: str}
          method: {description: Default GET; POST with a body., type: str}
          headers: {description: "Name to value. Never shown.", type: dict}
          body: {description: A text to send., type: str}
          json: {description: Something to send as JSON., type: raw}
          expect:
            description:
              - C(status) (V(200), V(2xx) or a list; default V(2xx)), C(contains) (text), C(matches) (regular
                expression), C(json) (path such as C(choices.0.text) to value), C(within) (duration).
            type: dict
          save: {description: "Name to JSON path, for the requests that follow.", type: dict}
          follow: {description: Whether redirects are followed; default yes., type: bool}
          timeout: {description: "This request's own limit.", type: str}
          base: {description: "What the requests' URLs begin with.", type: str}
          requests: {description: Requests one after the other; each with the keys above., type: list, elements: dict}
          after: {description: "Requests that clean up, whatever came of the others.", type: list, elements: dict}
          ca: {description: File of the authorities to trust., type: path}
          verify: {description: Whether the certificate must be trusted; default yes., type: bool}
      tcp:
        description: A connection is accepted.
        type: dict
        suboptions:
          host: {description: Name or address., type: str, required: true}
          port: {description: Port., type: int, required: true}
      postgresql:
        description: A query in a read-only transaction.
        type: dict
        suboptions:
          dsn: {description: "Where, as libpq reads it. Never shown.", type: str, required: true}
          query: {description: "Default C(SELECT 1).", type: str}
          expect:
            description: The first column of the first row, or a condition such as V(>= 1). Default any row.
            type: raw
      redis:
        description: A PING.
        type: dict
        suboptions:
          url: {description: "C(redis://:password@host:6379/0). Never shown.", type: str, required: true}
          write: {description: Also write a key that ends after a minute, read it and delete it., type: bool}
      ai_gateway:
        description: An OpenAI-compatible gateway answers a prompt with a text.
        type: dict
        suboptions:
          url: {description: "The gateway, with or without C(/v1).", type: str, required: true}
          key: {description: "Sent as bearer. Never shown.", type: str}
          model: {description: "Default the first one of C(/v1/models).", type: str}
          prompt: {description: What to ask., type: str}
          health: {description: "Path that must answer first, such as C(/health/readiness).", type: str}
          ca: {description: File of the authorities to trust., type: path}
          verify: {description: Whether the certificate must be trusted; default yes., type: bool}
      command:
        description: A command, run without a shell.
        type: dict
        suboptions:
          argv: {description: The command and its arguments., type: list, elements: str, required: true}
          rc: {description: Expected exit code; default 0., type: int}
          output: {description: Regular expression that its output must match., type: str}
attributes:
  action:
    support: full
    description: Takes the play's secrets out of the result, and what was asked, which is the plan's.
  check_mode:
    support: full
    description: Says what it would ask, and asks nobody.
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Ask the product whether it works
  balik.rollback.smoke_test:
    limit: 30s
    checks:
      - name: a document is saved and read back
        http:
          base: https://api.example
          requests:
            - {url: /documents, json: {title: "<unique>", body: x}, expect: {status: 201}, save: {id: id}}
            - {url: /documents/<id>, expect: {json: {title: "<unique>"}, within: 500ms}}
          after:
            - {url: /documents/<id>, method: DELETE}
      - name: database
        postgresql: {dsn: "{{ dsn }}", query: SELECT count(*) FROM documents, expect: ">= 1"}
      - name: the bad release is gone
        must: not-answer
        tcp: {host: new.example, port: 8000}
"""

RETURN = r"""
says:
  description: One sentence for the operator.
  type: str
  returned: success
before:
  description: Nothing; a smoke test changes nothing.
  type: dict
  returned: check
evidence:
  description: C(checks), a list of name, kind, ok, ms (of the last try), tries, found and expected.
  type: dict
  returned: main, verify, also when checks failed
"""

from typing import Any  # noqa: E402 - documentation comes first in a module

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.http_probe import secrets_of  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.smoke import SmokeFailed, run_step  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.units import parse_duration  # noqa: E402

CHECK: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "timeout": {"type": "str"},
    "must": {"type": "str", "choices": ["answer", "not-answer"]},
    # Read by module_utils/smoke, which names the key path; and not no_log, since Ansible would then take the text of
    # every header (Accept-Language: id) out of every word of the result.
    "http": {"type": "dict"},
    "tcp": {
        "type": "dict",
        "options": {"host": {"type": "str", "required": True}, "port": {"type": "int", "required": True}},
    },
    "postgresql": {
        "type": "dict",
        "options": {
            "dsn": {"type": "str", "required": True, "no_log": True},
            "query": {"type": "str"},
            "expect": {"type": "raw"},
        },
    },
    "redis": {
        "type": "dict",
        "options": {"url": {"type": "str", "required": True, "no_log": True}, "write": {"type": "bool"}},
    },
    "ai_gateway": {
        "type": "dict",
        "options": {
            "url": {"type": "str", "required": True},
            "key": {"type": "str", "no_log": True},
            "model": {"type": "str"},
            "prompt": {"type": "str"},
            "health": {"type": "str"},
            "ca": {"type": "path"},
            "verify": {"type": "bool"},
        },
    },
    "command": {
        "type": "dict",
        "options": {
            "argv": {"type": "list", "elements": "str", "required": True},
            "rc": {"type": "int"},
            "output": {"type": "str"},
        },
    },
}


def given(value: Any, spec: dict[str, Any]) -> Any:
    """The options that were written: Ansible adds the others as None."""
    if isinstance(value, list):
        return [given(each, spec) for each in value]
    return {
        key: given(each, spec[key]["options"]) if "options" in spec[key] else each
        for key, each in value.items()
        if each is not None
    }


OPTIONS: dict[str, Any] = {
    "entry": {"type": "str", "choices": ["check", "main", "verify"], "default": "main"},
    "limit": {"type": "str", "default": "30s"},
    "checks": {"type": "list", "elements": "dict", "required": True, "options": CHECK},
}


def main() -> None:
    """Read the arguments, hand them over, give back what comes."""
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    entry, checks = module.params["entry"], given(module.params["checks"], CHECK)
    for check in checks:
        module.no_log_values.update(secret for secret in secrets_of(check.get("http", {})) if len(secret) >= 4)
    try:
        result = run_step(entry, checks, parse_duration(module.params["limit"], "limit"), module.check_mode)
    except SmokeFailed as error:
        module.fail_json(msg=error.found, evidence=error.evidence)
    except BalikError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
