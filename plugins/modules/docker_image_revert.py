#!/usr/bin/python
# Licence: Apache-2.0 (see LICENSE)
"""Documentation and main() of the module; the work is done in module_utils/docker_revert."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_image_revert
short_description: Bring Docker containers back to an earlier image
description:
  - Creates each container anew from an earlier image with everything else it had, gives it the old one's name, and
    waits until it is healthy. The old one is kept, stopped, and comes back by itself when the new one does not become
    healthy.
  - Several containers at once. Interrupted anywhere, the next call goes on from there.
  - Not C(community.docker.docker_container), which removes the old container before the new one is known to be good,
    wants the whole container described again, and does one container per task.
  - Containers of a Compose project are brought back through Compose with O(compose), because it owns them.
version_added: 0.1.0
author: The balik authors
requirements:
  - python >= 3.9
  - The Docker SDK for Python >= 5.0 (Debian's python3-docker)
  - For O(compose), C(docker compose) (the plugin) or docker-compose >= 1.27
options:
  entry:
    description:
      - V(check) reads and says what would be done, V(main) does it, V(verify) reads what runs, V(undo) puts back what
        V(check) saw.
    type: str
    choices: [check, main, verify, undo]
    required: true
  run_id:
    description: The run's name; it becomes a part of the names of what is kept.
    type: str
    required: true
  containers:
    description: The containers. Names, not ids. Exactly one of this, O(labels) and O(compose) is wanted.
    type: list
    elements: dict
    suboptions:
      name:
        description: The container's name.
        type: str
        required: true
      image:
        description: The image to go back to, if not O(image).
        type: str
      limit:
        description: How long this one may take to become healthy, if not O(limit).
        type: str
  labels:
    description: Select containers by these labels; an empty value takes any.
    type: dict
  image:
    description:
      - The image to go back to - C(name@sha256:...) (best, it cannot have moved), C(name:tag), or an image's id.
    type: str
  compose:
    description: A Compose project instead of single containers.
    type: dict
    suboptions:
      project_dir:
        description: The project's folder.
        type: path
        required: true
      files:
        description: Its Compose files, relative to the folder; by default the one that Compose finds.
        type: list
        elements: str
      services:
        description: Service and the image to go back to.
        type: dict
        required: true
  pull:
    description:
      - V(missing) fetches what is not on the engine, V(always) asks the registry what a tag means now, V(never) takes
        only what is there.
    type: str
    choices: [missing, always, never]
    default: missing
  limit:
    description: How long each container may take to become healthy.
    type: str
    default: 2m
  steady:
    description: How long a container without a health check must run without a restart.
    type: str
    default: 5s
  parallel:
    description: How many containers at once.
    type: int
    default: 10
  docker_host:
    description: The engine, as C(unix://), C(tcp://) or C(ssh://).
    type: str
    default: unix:///var/run/docker.sock
  cert_path:
    description: Folder with ca.pem, cert.pem and key.pem for TLS over TCP.
    type: path
  saved:
    description: What V(check) gave back as C(before) the first time in this run. For V(undo).
    type: dict
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Bring the app back
  balik.rollback.docker_image_revert:
    entry: main
    run_id: "{{ rollback_run_id }}"
    containers:
      - name: lawyers-hub-app-1
      - name: lawyers-hub-app-2
    image: lawyers-hub@sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0
"""

RETURN = r"""
says:
  description: One sentence for the operator and the report.
  type: str
  returned: success
before:
  description: For V(check), name → id, image, image_id and digest of what stands there.
  type: dict
  returned: check
evidence:
  description: For the others, C(containers) (name → what was measured) and C(seconds).
  type: dict
  returned: main, verify, undo
"""

from typing import Any  # noqa: E402 - documentation comes first in a module

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.entry import run  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402

OPTIONS: dict[str, Any] = {
    "entry": {"type": "str", "choices": ["check", "main", "verify", "undo"], "required": True},
    "run_id": {"type": "str", "required": True},
    "containers": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "image": {"type": "str"},
            "limit": {"type": "str"},
        },
    },
    "labels": {"type": "dict"},
    "image": {"type": "str"},
    "compose": {
        "type": "dict",
        "options": {
            "project_dir": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "str"},
            "services": {"type": "dict", "required": True},
        },
    },
    "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
    "limit": {"type": "str", "default": "2m"},
    "steady": {"type": "str", "default": "5s"},
    "parallel": {"type": "int", "default": 10},
    "docker_host": {"type": "str", "default": "unix:///var/run/docker.sock"},
    "cert_path": {"type": "path"},
    "saved": {"type": "dict"},
}


def main() -> None:
    """Read the arguments, hand them over, give back what comes."""
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    try:
        result = run(module.params, module.check_mode)
    except BalikError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
