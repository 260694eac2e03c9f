"""What to ask of the engine so that a container comes back with all it had, except its image.

Pure functions over what ``docker inspect`` shows. An inspected ``Config`` mixes what the user asked for with the
image's own defaults; only the former is carried over, so that the other image's defaults (its version in the
environment, its command, its health check) hold in the new container. What a user set to the very value of
the old image's default cannot be told from the default, and follows the new image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
#: Since this API version all networks can be given at creation, and a MAC address belongs to the endpoint.
ALL_NETWORKS_AT_ONCE = (1, 44)


def creation(container: Json, old_image: Json, reference: str, api: tuple[int, ...]) -> tuple[Json, dict[str, Json]]:
    """The body of the engine's "create container", and the networks to connect before the start.

    :param container: the old container, inspected; running or not.
    :param old_image: its image, inspected.
    :param reference: the image of the new container.
    :param api: the engine's API version.
    :returns: (body, network → endpoint settings).
    """
    host = host_config(container)
    config = user_config(container["Config"], old_image.get("Config") or {})
    config["Image"] = reference
    _drop_generated(config, container, host, api)
    published: Json = {port: {} for port in host.get("PortBindings") or {}}
    config["ExposedPorts"] = {**config.get("ExposedPorts", {}), **published}
    if host["NetworkMode"].startswith("container:"):
        # They belong to the container whose network this is; the engine refuses them here.
        for key in ("Hostname", "Domainname", "ExposedPorts", "MacAddress"):
            config.pop(key, None)
    networks = endpoints(container, api)
    first = _first_network(host["NetworkMode"], container)
    if first in networks:
        host["NetworkMode"] = host["NetworkMode"] if first == "bridge" else first
    now = networks if api >= ALL_NETWORKS_AT_ONCE else {name: networks[name] for name in networks if name == first}
    body = {**config, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": now}}
    return body, {name: endpoint for name, endpoint in networks.items() if name not in now}


def user_config(config: Json, image: Json) -> Json:
    """What the user asked for in an inspected container's ``Config``: all that differs from its image's."""
    kept = {key: value for key, value in config.items() if key not in ("OnBuild", "Entrypoint", "Cmd")}
    for key in ("User", "WorkingDir", "StopSignal", "Shell"):
        if kept.get(key) == image.get(key):
            kept.pop(key, None)
    defaults = set(image.get("Env") or ())
    kept["Env"] = [entry for entry in config.get("Env") or () if entry not in defaults]
    for key in ("Labels", "ExposedPorts", "Volumes"):
        default = image.get(key) or {}
        kept[key] = {
            name: value
            for name, value in (config.get(key) or {}).items()
            if name not in default or default[name] != value
        }
    check, default = config.get("Healthcheck"), image.get("Healthcheck") or {}
    # The engine fills each missing field of a health check from the image.
    kept["Healthcheck"] = {key: value for key, value in (check or {}).items() if default.get(key) != value} or None
    kept.update(_command(config, image))
    return kept


def _command(config: Json, image: Json) -> Json:
    """Entrypoint and command, by the engine's rule: who sets an entrypoint does not get the image's command."""
    entrypoint, default_entrypoint = config.get("Entrypoint") or None, image.get("Entrypoint") or None
    command, default_command = config.get("Cmd") or None, image.get("Cmd") or None
    if entrypoint != default_entrypoint or (default_command and not command):
        # [""] is how the engine is told to have none at all.
        return {"Entrypoint": entrypoint or [""], "Cmd": command}
    return {} if command == default_command else {"Cmd": command}


def _drop_generated(config: Json, container: Json, host: Json, api: tuple[int, ...]) -> None:
    """Take out what the engine itself filled in for the old container."""
    if config.get("Hostname") == container["Id"][:12] or host.get("UTSMode") == "host" or host["NetworkMode"] == "host":
        config.pop("Hostname", None)
    if api >= ALL_NETWORKS_AT_ONCE:
        config.pop("MacAddress", None)
    pinned = {bind.split(":")[1] for bind in host.get("Binds") or () if ":" in bind}
    config["Volumes"] = {path: value for path, value in config.get("Volumes", {}).items() if path not in pinned}


def host_config(container: Json) -> Json:
    """The old container's ``HostConfig`` as it can be given again, with random ports and anonymous volumes named."""
    host: Json = {key: value for key, value in container["HostConfig"].items() if key != "ContainerIDFile"}
    host["PortBindings"] = _ports(container)
    host["Links"] = [_link(entry) for entry in host.get("Links") or ()] or None
    mounts = [dict(mount) for mount in host.get("Mounts") or ()]
    taken = {bind.split(":")[1] for bind in host.get("Binds") or () if ":" in bind} | set(host.get("Tmpfs") or {})
    binds = [bind for bind in host.get("Binds") or () if ":" in bind]
    for volume in container.get("Mounts") or ():
        path = volume["Destination"]
        if volume["Type"] != "volume" or path in taken:
            continue
        own = next((mount for mount in mounts if mount.get("Target") == path), None)
        if own is not None:
            own.setdefault("Source", "")
            own["Source"] = own["Source"] or volume["Name"]
        else:
            binds.append(f"{volume['Name']}:{path}" + ("" if volume.get("RW", True) else ":ro"))
    host["Binds"] = binds or None
    if mounts:
        host["Mounts"] = mounts
    return host


def _ports(container: Json) -> Json:
    """Published ports; those that the engine chose are named, so that they stay what they are.

    Only a running container shows which ones they are.
    """
    wanted = container["HostConfig"].get("PortBindings") or {}
    actual = {port: found for port, found in (container["NetworkSettings"].get("Ports") or {}).items() if found}
    ports = dict(wanted)
    for port, bindings in actual.items():
        if port not in wanted or any(
            not (entry.get("HostPort") or "").isdigit() or entry["HostPort"] == "0" for entry in wanted[port]
        ):
            ports[port] = bindings
    return ports


def _link(entry: str) -> str:
    """``db:store`` of the inspected ``/db:/app/store``."""
    other, _, alias = entry.partition(":")
    return f"{other.lstrip('/')}:{alias.rpartition('/')[2]}"


def _first_network(mode: str, container: Json) -> str:
    """The network that the container's network mode means, by the name it has among its networks."""
    networks = container["NetworkSettings"].get("Networks") or {}
    if mode in ("default", "bridge"):
        mode = "bridge"
    if mode in networks:
        return mode
    by_id = (name for name, endpoint in networks.items() if endpoint.get("NetworkID", "").startswith(mode))
    return next(by_id, next(iter(networks), mode))


def endpoints(container: Json, api: tuple[int, ...]) -> dict[str, Json]:
    """What the user asked for in each network: fixed addresses, aliases, links, driver options.

    Networks that are no network of the engine (``host``, ``none``, another container's) have none.
    """
    mode = container["HostConfig"]["NetworkMode"]
    if mode in ("host", "none") or mode.startswith("container:"):
        return {}
    found = {}
    for name, seen in (container["NetworkSettings"].get("Networks") or {}).items():
        endpoint = {key: seen[key] for key in ("IPAMConfig", "Links", "DriverOpts", "GwPriority") if seen.get(key)}
        # The engine adds the old container's own short id.
        aliases = [alias for alias in seen.get("Aliases") or () if alias != container["Id"][:12]]
        if aliases:
            endpoint["Aliases"] = aliases
        if api >= ALL_NETWORKS_AT_ONCE and _mac_is_chosen(seen):
            endpoint["MacAddress"] = seen["MacAddress"]
        found[name] = endpoint
    return found


def _mac_is_chosen(seen: Json) -> bool:
    """Whether a MAC address can be taken along: not one that the engine made of the container's address.

    The engine does not say which are chosen; one made of an address would become somebody else's with it.
    """
    mac, address = (seen.get("MacAddress") or "").lower(), seen.get("IPAddress") or ""
    made = "02:42:" + ":".join(f"{int(part):02x}" for part in address.split(".")) if address.count(".") == 3 else ""
    return bool(mac) and mac != made


def same_networks(container: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two containers are attached to the same networks."""
    return set(container["NetworkSettings"]["Networks"]) == set(other["NetworkSettings"]["Networks"])
