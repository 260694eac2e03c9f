#!/usr/bin/python
"""The maintenance page of one load balancer; the thinking stands in module_utils/traffic."""

from __future__ import annotations

DOCUMENTATION = r"""
module: maintenance_page
short_description: Puts a maintenance page up and takes it down, without a reload
description:
  - Throws a switch that was built into nginx or HAProxy before go-live, and waits until a visitor sees the effect.
  - Existing modules write a configuration and reload, which resets connections and takes ten times as long, or set a
    HAProxy map in memory only, which the next reload forgets.
version_added: 0.1.0
author: balik
options:
  state:
    description:
      - V(prepared) writes the switch and the page, validates, and reloads where the running process needs it.
      - V(ready) reads only, and proves that the switch would bring up the page.
      - V(on) and V(off) throw the switch and wait until a visitor sees it.
      - V(verified_on) and V(verified_off) read again and fail when it is not so.
      - V(seen_on) reads only that visitors still have the page, and not what gets past it.
    type: str
    choices: [prepared, ready, "on", verified_on, seen_on, "off", verified_off]
    required: true
  host:
    description: What the load balancer is called in messages.
    type: str
    default: this host
  backend:
    description: Which load balancer stands on this host, or that a cluster's routes are to be switched.
    type: str
    choices: [nginx, haproxy, kubernetes]
    required: true
  dir:
    description: Folder that holds the switch and the page.
    type: str
    required: true
  url:
    description:
      - The public entrance, as the load balancer answers it on its own host.
      - With O(backend=kubernetes) it may be empty; only the API's objects are read then, and no visitor's answer.
    type: str
    required: true
  url_host:
    description: C(Host) header and TLS name, where they differ from those of O(url).
    type: str
    default: ""
  validate_certs:
    description: Whether the certificate of an C(https) O(url) must be valid.
    type: bool
    default: true
  bypass:
    description: Secret with which an operator gets past the page; 16 or more letters, digits, C(_) and C(-).
    type: str
    required: true
  health:
    description: Paths that the application goes on answering.
    type: list
    elements: str
    default: []
  within:
    description: How long the load balancer has to show the effect.
    type: str
    default: 5s
  app_must_answer:
    description: With O(state=off), the application must first answer behind the page, or the page stays.
    type: bool
    default: false
  page:
    description: The page itself; needed by O(state=prepared) and O(state=ready).
    type: dict
    suboptions:
      html: {description: What people get., type: str, required: true}
      message: {description: What programs get that ask for JSON., type: str, required: true}
      retry_after: {description: When to come again., type: str, required: true}
      group: {description: Group that may read the files with the bypass., type: str, default: ""}
  nginx:
    description: How nginx is reached.
    type: dict
    default: {}
    suboptions:
      command: {description: How nginx is called., type: str, default: nginx}
      servers:
        description: C(server_name) of the server blocks that need the switch; every one when empty.
        type: list
        elements: str
        default: []
  haproxy:
    description: How HAProxy is reached.
    type: dict
    default: {}
    suboptions:
      socket: {description: The runtime socket., type: str, default: /run/haproxy/admin.sock}
      config:
        description: The configuration files.
        type: list
        elements: str
        default: [/etc/haproxy/haproxy.cfg]
      frontends:
        description: The frontends that need the switch; every one when empty.
        type: list
        elements: str
        default: []
      command: {description: How HAProxy is called to try a configuration., type: str, default: haproxy}
      reload: {description: How a running HAProxy is reloaded., type: str, default: systemctl reload haproxy}
  kubernetes:
    description: The cluster, its routes, and the page in it.
    type: dict
    default: {}
    suboptions:
      kubeconfig: {description: The file; by default as C(kubectl) finds it., type: path, default: ""}
      context: {description: The context in it., type: str, default: ""}
      name: {description: What everything of the page is called., type: str, default: balik-maintenance}
      image: {description: nginx as the cluster can pull it., type: str, default: ""}
      replicas: {description: How many pods serve the page., type: int, default: 2}
      limit: {description: How long they may take to become ready., type: str, default: 2m}
      run: {description: The run's name for the note on the routes., type: str, default: ""}
      product: {description: Whose page it is; what another product has switched stays., type: str, default: ""}
      owners:
        description: What O(state=ready) does where Argo CD or Flux would put the routes' backends back.
        type: str
        choices: [refuse, accept]
        default: refuse
      argocd_namespaces:
        description: Where Argo CD's Applications stand.
        type: list
        elements: str
        default: [argocd]
      recorded:
        description: The routes that got the page by the run's record; it goes down there, too.
        type: list
        elements: str
        default: []
      began:
        description: What tells the cluster of the run's record (C(before) of V(ready)); another one is refused.
        type: dict
        default: {}
      routes:
        description: The routes to switch.
        type: list
        elements: dict
        default: []
        suboptions:
          kind: {description: Its kind., type: str, choices: [Ingress, HTTPRoute], default: Ingress}
          namespace: {description: Where it is., type: str, required: true}
          name: {description: Its name., type: str, required: true}
          paths: {description: Only these of its paths., type: list, elements: str, default: []}
          hosts:
            description: Only these of its hosts; V(*) is a rule without one.
            type: list
            elements: str
            default: []
attributes:
  check_mode: {support: full, description: Says what would be done.}
  diff_mode: {support: full, description: Shows the switch and the page, never the bypass.}
"""

EXAMPLES = r"""
- name: Put the page up
  balik.rollback.maintenance_page:
    state: "on"
    backend: nginx
    dir: /etc/nginx/maintenance
    url: http://127.0.0.1/
    bypass: "{{ vault_maintenance_page_bypass }}"
"""

RETURN = r"""
says: {description: One sentence about what is true now., type: str, returned: always}
before: {description: "Position of the switch: C({'page': 'off'}).", type: dict, returned: when O(state=ready)}
evidence: {description: What was measured., type: dict, returned: when something was}
page: {description: "C(on): visitors see the page where O(state=verified_off) wants the application.", type: str,
  returned: when it fails so}
missing:
  description: What the owner of the load balancer still has to write into its configuration.
  type: list
  elements: str
  returned: when O(state=prepared)
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402  # documentation comes first in a module
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.traffic.balancer import Balancer  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.traffic.door import Door  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.traffic.haproxy import HAProxy  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.traffic.maintenance import (  # noqa: E402
    Maintenance,
    Result,
)
from ansible_collections.balik.rollback.plugins.module_utils.traffic.nginx import Nginx  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.traffic.page import (  # noqa: E402
    Page,
    PageIsOn,
    check_bypass,
    check_folder,
    check_health,
)
from ansible_collections.balik.rollback.plugins.module_utils.units import parse_duration  # noqa: E402

OPTIONS = {
    "state": {
        "type": "str",
        "choices": ["prepared", "ready", "on", "verified_on", "seen_on", "off", "verified_off"],
        "required": True,
    },
    "host": {"type": "str", "default": "this host"},
    "backend": {"type": "str", "choices": ["nginx", "haproxy", "kubernetes"], "required": True},
    "dir": {"type": "str", "required": True},
    "url": {"type": "str", "required": True},
    "url_host": {"type": "str", "default": ""},
    "validate_certs": {"type": "bool", "default": True},
    "bypass": {"type": "str", "required": True, "no_log": True},
    "health": {"type": "list", "elements": "str", "default": []},
    "within": {"type": "str", "default": "5s"},
    "app_must_answer": {"type": "bool", "default": False},
    "page": {
        "type": "dict",
        "options": {
            "html": {"type": "str", "required": True},
            "message": {"type": "str", "required": True},
            "retry_after": {"type": "str", "required": True},
            "group": {"type": "str", "default": ""},
        },
    },
    "nginx": {
        "type": "dict",
        "default": {},
        "options": {
            "command": {"type": "str", "default": "nginx"},
            "servers": {"type": "list", "elements": "str", "default": []},
        },
        "apply_defaults": True,
    },
    "haproxy": {
        "type": "dict",
        "default": {},
        "options": {
            "socket": {"type": "str", "default": "/run/haproxy/admin.sock"},
            "config": {"type": "list", "elements": "str", "default": ["/etc/haproxy/haproxy.cfg"]},
            "frontends": {"type": "list", "elements": "str", "default": []},
            "command": {"type": "str", "default": "haproxy"},
            "reload": {"type": "str", "default": "systemctl reload haproxy"},
        },
        "apply_defaults": True,
    },
    "kubernetes": {
        "type": "dict",
        "default": {},
        "options": {
            "kubeconfig": {"type": "path", "default": ""},
            "context": {"type": "str", "default": ""},
            "name": {"type": "str", "default": "balik-maintenance"},
            "image": {"type": "str", "default": ""},
            "replicas": {"type": "int", "default": 2},
            "limit": {"type": "str", "default": "2m"},
            "run": {"type": "str", "default": ""},
            "product": {"type": "str", "default": ""},
            "owners": {"type": "str", "choices": ["refuse", "accept"], "default": "refuse"},
            "argocd_namespaces": {"type": "list", "elements": "str", "default": ["argocd"]},
            "recorded": {"type": "list", "elements": "str", "default": []},
            "began": {"type": "dict", "default": {}},
            "routes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "kind": {"type": "str", "choices": ["Ingress", "HTTPRoute"], "default": "Ingress"},
                    "namespace": {"type": "str", "required": True},
                    "name": {"type": "str", "required": True},
                    "paths": {"type": "list", "elements": "str", "default": []},
                    "hosts": {"type": "list", "elements": "str", "default": []},
                },
            },
        },
        "apply_defaults": True,
    },
}


def balancer(options: dict) -> Balancer:
    folder = check_folder(options["dir"])
    if options["backend"] == "nginx":
        return Nginx(folder, options["nginx"]["command"], options["nginx"]["servers"])
    known = options["haproxy"]
    return HAProxy(folder, known["socket"], known["config"], known["frontends"], known["command"], known["reload"])


def maintenance(options: dict, dry: bool) -> Maintenance:
    health = tuple(check_health(path) for path in options["health"])
    door = Door(options["url"], options["url_host"], options["validate_certs"])
    within = parse_duration(options["within"], "maintenance_page_within")
    common = (door, check_bypass(options["bypass"]), health, within, dry)
    if options["backend"] != "kubernetes":
        return Maintenance(options["host"], balancer(options), *common)
    # Only here: a load balancer's host has no use for it.
    from ansible_collections.balik.rollback.plugins.module_utils.kubernetes.client import Cluster
    from ansible_collections.balik.rollback.plugins.module_utils.kubernetes_revert.gitops import ARGO_HOME, Where
    from ansible_collections.balik.rollback.plugins.module_utils.traffic.kubernetes import KubernetesMaintenance, Routes
    from ansible_collections.balik.rollback.plugins.module_utils.traffic.kubernetes_routes import (
        check_routes,
        recorded_routes,
    )

    known = options["kubernetes"]
    chosen = check_routes(known["routes"])
    cluster = Cluster.connect(known["kubeconfig"], known["context"])
    recorded = recorded_routes(known["recorded"])
    routes = Routes(cluster, known["name"], known["run"], chosen, known["product"], recorded, known["began"])
    # That one waits for an API that does not answer, and sees this itself.
    if options["state"] != "seen_on":
        routes.must_be_where_it_began()
    limit = parse_duration(known["limit"], "maintenance_page_kubernetes_limit")
    argocd = Where.named(known["argocd_namespaces"], ARGO_HOME, "maintenance_page_kubernetes_argocd_namespaces")
    owners = (tuple(argocd.namespaces), known["owners"] == "accept")
    return KubernetesMaintenance(options["host"], routes, *common, known["image"], known["replicas"], limit, *owners)


def carry_out(options: dict, dry: bool) -> Result:
    chosen = maintenance(options, dry)
    state = options["state"]
    if state == "on":
        return chosen.on()
    if state == "off":
        return chosen.off(options["app_must_answer"])
    if state == "verified_on":
        return chosen.verify_on()
    if state == "seen_on":
        return chosen.see_on()
    if state == "verified_off":
        return chosen.verify_off()
    given = options["page"]
    retry_after = round(parse_duration(given["retry_after"], "maintenance_page_retry_after"))
    page = Page(given["html"], given["message"], retry_after, chosen.health)
    return chosen.check(page) if state == "ready" else chosen.prepare(page, given["group"])


def main() -> None:
    needs_page = [("state", state, ["page"]) for state in ("prepared", "ready")]
    module = AnsibleModule(OPTIONS, supports_check_mode=True, required_if=needs_page)
    try:
        result = carry_out(module.params, module.check_mode)
    except PageIsOn as error:
        module.fail_json(msg=str(error), page="on")
    except BalikError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
