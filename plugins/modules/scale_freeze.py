#!/usr/bin/python
"""Autoscalers held still, and let go again; the thinking stands in module_utils/scale."""

from __future__ import annotations

DOCUMENTATION = r"""
module: scale_freeze
short_description: Holds autoscalers still, and gives them back exactly their settings
description:
  - Freezes the autoscalers of a product's namespaces in Kubernetes, or its Auto Scaling groups in AWS, all in one call.
    What is replaced is kept on the object itself (an annotation, a tag), in the same request as the change, so that a
    freeze cannot be half-done and the thaw needs nothing but the object.
  - A loop of existing modules pays Ansible's cost for each autoscaler and leaves the settings before to the user.
version_added: 0.1.0
author: balik
options:
  state:
    description:
      - V(ready) and V(ready_to_thaw) read only, and prove that the freeze or the thaw can be done.
      - V(frozen) and V(thawed) do it. V(thawed) lets go all that the freeze of O(product) holds.
      - V(verified_frozen) and V(verified_thawed) read again and fail when it is not so.
    type: str
    choices: [ready, frozen, verified_frozen, ready_to_thaw, thawed, verified_thawed]
    required: true
  backend:
    description: Who scales.
    type: str
    choices: [kubernetes, aws]
    default: kubernetes
  product:
    description: Whose freeze it is.
    type: str
    required: true
  run:
    description: The run's name, which the note on the object holds.
    type: str
    default: ""
  only:
    description: With O(state=frozen), just these of an earlier thaw's C(before), without a look at the selection.
    type: list
    elements: str
  recorded:
    description:
      - What the record has of this run's freeze (C(before) of V(ready)); empty where there was none.
      - A thaw lets all of it go too, wherever the plan looks by now; where the annotation or the tag is gone, the
        settings that stand here are given back. Another cluster, or another region or account of AWS, is refused.
    type: dict
    default: {}
  kubernetes:
    description: The cluster, and which of its autoscalers.
    type: dict
    default: {}
    suboptions:
      kubeconfig: {description: The file; by default as C(kubectl) finds it., type: path, default: ""}
      context: {description: The context in it., type: str, default: ""}
      namespaces: {description: Where the autoscalers are., type: list, elements: str, default: []}
      labels: {description: Those with these labels; an empty value takes any., type: dict, default: {}}
      names: {description: Those named so (C(name) or C(namespace/name))., type: list, elements: str, default: []}
      kinds:
        description: Those of these kinds, as far as the cluster has them.
        type: list
        elements: str
        choices: [HorizontalPodAutoscaler, ScaledObject, ScaledJob, VerticalPodAutoscaler]
        default: [HorizontalPodAutoscaler, ScaledObject, ScaledJob, VerticalPodAutoscaler]
  aws:
    description: The region, and which of its Auto Scaling groups. Credentials are found as AWS's own tools find them.
    type: dict
    default: {}
    suboptions:
      region: {description: The region., type: str, default: ""}
      profile: {description: The profile of the credentials., type: str, default: ""}
      endpoint: {description: Another endpoint., type: str, default: ""}
      groups: {description: The groups by name., type: list, elements: str, default: []}
      tags: {description: Or all that carry these tags., type: dict, default: {}}
attributes:
  check_mode: {support: full, description: Says what would be done.}
  diff_mode: {support: full, description: Names what would change.}
"""

EXAMPLES = r"""
- name: Freeze everything that scales Lawyers Hub
  balik.rollback.scale_freeze:
    state: frozen
    product: lawyers-hub
    kubernetes: {namespaces: [lawyers-hub]}
"""

RETURN = r"""
says: {description: One sentence about what is true now., type: str, returned: always}
before: {description: The settings that stood there., type: dict, returned: when it is asked whether it can be done}
evidence: {description: What was counted., type: dict, returned: when something was}
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402  # documentation comes first in a module
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import Cluster  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.scale import aws, kinds  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.scale.freeze import Freezer  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.units import label_terms  # noqa: E402

STATES = ["ready", "frozen", "verified_frozen", "ready_to_thaw", "thawed", "verified_thawed"]
OPTIONS = {
    "state": {"type": "str", "choices": STATES, "required": True},
    "backend": {"type": "str", "choices": ["kubernetes", "aws"], "default": "kubernetes"},
    "product": {"type": "str", "required": True},
    "run": {"type": "str", "default": ""},
    "only": {"type": "list", "elements": "str"},
    "recorded": {"type": "dict", "default": {}},
    "kubernetes": {
        "type": "dict",
        "default": {},
        "apply_defaults": True,
        "options": {
            "kubeconfig": {"type": "path", "default": ""},
            "context": {"type": "str", "default": ""},
            "namespaces": {"type": "list", "elements": "str", "default": []},
            "labels": {"type": "dict", "default": {}},
            "names": {"type": "list", "elements": "str", "default": []},
            "kinds": {"type": "list", "elements": "str", "choices": list(kinds.NAMES), "default": list(kinds.NAMES)},
        },
    },
    "aws": {
        "type": "dict",
        "default": {},
        "apply_defaults": True,
        "options": {
            "region": {"type": "str", "default": ""},
            "profile": {"type": "str", "default": ""},
            "endpoint": {"type": "str", "default": ""},
            "groups": {"type": "list", "elements": "str", "default": []},
            "tags": {"type": "dict", "default": {}},
        },
    },
}


def holder(options: dict, dry: bool) -> aws.AutoScaling | Freezer:
    """What freezes and thaws for the chosen backend."""
    product, run = options["product"], options["run"]
    if options["backend"] == "aws":
        given = options["aws"]
        client, errors = aws.session(given["region"], given["profile"], given["endpoint"])
        region = client.meta.region_name
        tags = {key: str(value) for key, value in given["tags"].items()}
        return aws.AutoScaling(client, errors, region, product, run, given["groups"], tags, dry, options["recorded"])
    given = options["kubernetes"]
    cluster = Cluster.connect(given["kubeconfig"], given["context"])
    where, labels = given["namespaces"], ",".join(label_terms(given["labels"]))
    return Freezer(
        *(cluster, product, run, where, labels, given["names"], given["kinds"], dry),
        recorded=options["recorded"].get("autoscalers") or {},
        began=options["recorded"],
    )


def carry_out(options: dict, dry: bool) -> dict:
    chosen = holder(options, dry)
    if options["state"] == "frozen":
        return chosen.freeze(options["only"])
    acts = {
        "ready": chosen.ready,
        "verified_frozen": chosen.verify_frozen,
        "ready_to_thaw": chosen.ready_to_thaw,
        "thawed": chosen.thaw,
        "verified_thawed": chosen.verify_thawed,
    }
    return acts[options["state"]]()


def main() -> None:
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    try:
        result = carry_out(module.params, module.check_mode)
    except BalikError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
