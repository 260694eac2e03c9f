#!/usr/bin/python
# Licence: Apache-2.0 (see LICENSE)
"""Documentation and main() of the module; the work is done in module_utils/kubernetes_revert."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kubernetes_image_revert
short_description: Bring workloads of a Kubernetes cluster back to an earlier image
description:
  - Patches nothing but the image of each workload (and C(spec.suspend) of a Job), all in one call, waits until every
    rollout is complete, and reads back which image the running pods have.
  - Finds out before whether it can be done - permissions, admission rules (the patches are rehearsed), C(paused),
    C(OnDelete), quotas without room for another pod, and Argo CD, Flux or operators that would put the version back.
  - Says of each workload how it stands, also where others failed. Interrupted anywhere, the next call goes on from
    there.
  - Not C(kubernetes.core.k8s_rollback), which takes revision N-1 whatever that is, replaces all annotations, reports
    success where there was nothing to go back to, and does not wait; and not a loop of C(kubernetes.core.k8s), which
    pays Ansible's cost for each workload.
version_added: 0.1.0
author: The balik authors
requirements:
  - python >= 3.9
  - The Kubernetes client for Python >= 22 (Debian's python3-kubernetes)
options:
  entry:
    description:
      - V(check) reads and rehearses, V(main) does it, V(verify) reads what runs, V(undo) puts back what V(check) saw,
        V(resume) lets those act again that O(owners=suspend) held off; it has a check, a verification and an undo too.
    type: str
    choices: [check, main, verify, undo, check_resume, resume, verify_resume, undo_resume]
    required: true
  workloads:
    description: The workloads by name. Exactly one of this and O(labels) is wanted.
    type: list
    elements: dict
    suboptions:
      kind:
        description: What it is. Of a Job under way, the only thing that can be done is to suspend it.
        type: str
        choices: [Deployment, StatefulSet, DaemonSet, CronJob, Job]
        default: Deployment
      namespace:
        description: Where it is.
        type: str
        required: true
      name:
        description: Its name.
        type: str
        required: true
      image:
        description: The image to go back to, for whichever containers run any version of it.
        type: str
      containers:
        description: Or container and image, where the repository is another one.
        type: dict
      limit:
        description: How long its rollout may take, if not O(limit).
        type: str
  labels:
    description: All workloads with these labels that run any version of the images. An empty value takes any.
    type: dict
  namespaces:
    description: For O(labels), where to look; empty means in the whole cluster.
    type: list
    elements: str
  kinds:
    description: For O(labels), which kinds.
    type: list
    elements: str
    choices: [Deployment, StatefulSet, DaemonSet, CronJob, Job]
    default: [Deployment, StatefulSet, DaemonSet, CronJob]
  image:
    description: The image to go back to - C(name@sha256:...) (it cannot have moved), or C(name:tag).
    type: str
  images:
    description: More of them, where the product has several repositories.
    type: list
    elements: str
  already:
    description:
      - What to do where the image asked for is the one that runs - V(refuse), because it is probably a mistake, or
        V(accept).
    type: str
    choices: [refuse, accept]
    default: refuse
  cronjobs:
    description: V(revert) gives them the image for their next Jobs, V(suspend) lets them start none.
    type: str
    choices: [revert, suspend]
    default: revert
  owners:
    description:
      - Argo CD, Flux or an operator that would put the version back - V(refuse) the step, V(suspend) Argo CD's
        auto-sync and Flux until V(resume), or V(accept) it.
    type: str
    choices: [refuse, suspend, accept]
    default: refuse
  argocd_namespaces:
    description: Where Argo CD's Applications stand; by default C(argocd).
    type: list
    elements: str
  flux_namespaces:
    description: For V(resume), where Flux' objects stand; by default C(flux-system). A workload names its own.
    type: list
    elements: str
  product:
    description: Whose rollback holds others off; only that one lets them go again.
    type: str
    required: true
  resume:
    description:
      - Whom V(resume) lets act again - V(in_sync), those Applications of Argo CD that want what runs (Flux does not
        tell), or V(always) all.
    type: str
    choices: [in_sync, always]
    default: in_sync
  limit:
    description: How long each rollout may take.
    type: str
    default: 5m
  kubeconfig:
    description:
      - A kubeconfig; by default E(K8S_AUTH_KUBECONFIG), E(KUBECONFIG) or C(~/.kube/config), or E(K8S_AUTH_HOST) and
        E(K8S_AUTH_API_KEY) as AWX sets them, or the cluster around this pod.
    type: path
  context:
    description: A context of it.
    type: str
  recorded:
    description:
      - For V(resume), what the record says that the run was about to hold off, as paths of the API; these are looked at
        beside those of O(argocd_namespaces) and O(flux_namespaces) that these credentials may list. Without it, each
        namespace that is given must exist and be listed; of those by default at least one must be.
    type: list
    elements: str
  recorded_in:
    description: What V(check) gave back as C(before) in the run of the record; another cluster than that is refused.
    type: dict
  saved:
    description: What V(check) gave back as C(before) the first time in this run.
    type: dict
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Bring all of Lawyers Hub back
  balik.rollback.kubernetes_image_revert:
    entry: main
    product: lawyers-hub
    labels: {app.kubernetes.io/part-of: lawyers-hub}
    namespaces: [lawyers-hub]
    image: registry.example/lawyers-hub@sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0
"""

RETURN = r"""
says:
  description: One sentence for the operator and the report.
  type: str
  returned: success
before:
  description:
    - For V(check), C(workloads) (workload → images as configured, and the digests that ran), C(held) (who will be
      held off), and what tells this cluster from another (its address, uids).
  type: dict
  returned: check
evidence:
  description:
    - C(workloads) (workload → what runs now), C(seconds); where some failed also C(bad) (workload → why), C(unsure),
      C(untouched) and C(deleted_pods).
  type: dict
  returned: main, verify, undo; also on failure
"""

from typing import Any  # noqa: E402 - documentation comes first in a module

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.entry import run  # noqa: E402

_ENTRIES = ["check", "main", "verify", "undo", "check_resume", "resume", "verify_resume", "undo_resume"]
_KINDS = ["Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job"]


OPTIONS: dict[str, Any] = {
    "entry": {"type": "str", "choices": _ENTRIES, "required": True},
    "workloads": {
        "type": "list",
        "elements": "dict",
        "options": {
            "kind": {"type": "str", "choices": _KINDS, "default": "Deployment"},
            "namespace": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "image": {"type": "str"},
            "containers": {"type": "dict"},
            "limit": {"type": "str"},
        },
    },
    "labels": {"type": "dict"},
    "namespaces": {"type": "list", "elements": "str"},
    "kinds": {"type": "list", "elements": "str", "choices": _KINDS, "default": _KINDS[:4]},
    "image": {"type": "str"},
    "images": {"type": "list", "elements": "str"},
    "already": {"type": "str", "choices": ["refuse", "accept"], "default": "refuse"},
    "cronjobs": {"type": "str", "choices": ["revert", "suspend"], "default": "revert"},
    "owners": {"type": "str", "choices": ["refuse", "suspend", "accept"], "default": "refuse"},
    "argocd_namespaces": {"type": "list", "elements": "str"},
    "flux_namespaces": {"type": "list", "elements": "str"},
    "product": {"type": "str", "required": True},
    "resume": {"type": "str", "choices": ["in_sync", "always"], "default": "in_sync"},
    "limit": {"type": "str", "default": "5m"},
    "kubeconfig": {"type": "path"},
    "context": {"type": "str"},
    "recorded": {"type": "list", "elements": "str"},
    "recorded_in": {"type": "dict"},
    "saved": {"type": "dict"},
}


def main() -> None:
    """Read the arguments, hand them over, give back what comes."""
    module = AnsibleModule(OPTIONS, supports_check_mode=True)
    try:
        result = run(module.params, module.check_mode)
    except BalikError as error:
        evidence = getattr(error, "evidence", None)
        module.fail_json(msg=str(error), **({"evidence": evidence} if evidence else {}))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
