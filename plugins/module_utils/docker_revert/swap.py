"""One container gives its name to another: stop, rename, rename, start, wait. Interrupted anywhere, it can go on.

All that a later run must know stands in the engine, in the names:

- ``app-1``: what is in service,
- ``app-1--after-<run>``: the coming one, created and not in service yet (after an undo: the one that left),
- ``app-1--before-<run>``: the kept old one, stopped,
- ``app-1--failed-<run>``: one that did not become healthy, stopped, for whoever looks for the reason.

Labels stay what they were: Compose and others find their containers by them. A stopped container gets the restart
policy ``no``, or the engine's next start would bring it back; its own policy stands in the one that took its
place, and goes back with the name. So at every moment one of the two has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import BalikError
from ..units import format_duration
from .engine import Engine, Image
from .recreate import creation, same_networks

Json = dict[str, Any]
_NO_RESTART = {"Name": "no", "MaximumRetryCount": 0}
_NEVER = "0001-01-01"
_LOOK_EVERY = 0.2
# The engine doubles its pause after each: some 20 s.
_CRASH_LOOP = 8


@dataclass(frozen=True)
class Names:
    """The names that one container goes by in one run."""

    name: str
    run_id: str

    @property
    def before(self) -> str:
        return f"{self.name}--before-{self.run_id}"

    @property
    def after(self) -> str:
        return f"{self.name}--after-{self.run_id}"

    @property
    def failed(self) -> str:
        return f"{self.name}--failed-{self.run_id}"


@dataclass(frozen=True)
class Patience:
    """How long one container may take to become healthy, and how long one without a health check must run steadily.

    Both in seconds.
    """

    limit: float
    steady: float


def base_name(name: str, run_id: str) -> str:
    """The name in service of any of this run's names."""
    for part in ("before", "after", "failed"):
        name = name.removesuffix(f"--{part}-{run_id}")
    return name


def verdict(container: Json, running_for: float, steady: float) -> tuple[str, str]:
    """Whether a container serves: (``serves`` or ``wait`` or ``failed``, the reason in a few words).

    The output of a health check is left out: it may hold secrets.

    :param container: the container, inspected.
    :param running_for: seconds since it was first seen running under its present start.
    """
    state = container["State"]
    status, health = state["Status"], state.get("Health")
    if status == "restarting":
        times = container["RestartCount"]
        result = "failed" if times >= _CRASH_LOOP else "wait"
        return result, f"restarting, {times} times so far, last exit code {state['ExitCode']}"
    if status not in ("created", "running"):
        killed = ", out of memory" if state.get("OOMKilled") else ""
        return "failed", f"{status} with exit code {state['ExitCode']}{killed}"
    if health:
        return _verdict_of_health(health)
    if status == "running" and running_for >= steady:
        return "serves", f"running for {format_duration(running_for)}, no health check"
    restarts = f", restarted {container['RestartCount']} times" if container["RestartCount"] else ""
    return "wait", f"{status}, not yet for {format_duration(steady)}{restarts}"


def _verdict_of_health(health: Json) -> tuple[str, str]:
    last = f"last exit code {health['Log'][-1]['ExitCode']}" if health.get("Log") else "not checked yet"
    if health["Status"] == "unhealthy":
        return "failed", f"unhealthy: {health['FailingStreak']} health checks failed in a row, {last}"
    return ("serves", "healthy") if health["Status"] == "healthy" else ("wait", f"health {health['Status']}, {last}")


def wait_until_serving(
    engine: Engine, name: str, patience: Patience, clock: Callable[[], float] = time.monotonic
) -> str:
    """Wait until the container is healthy, or runs steadily when it has no health check; says which.

    :raises BalikError: it cannot become so any more, or has not within the limit.
    """
    begun = running_since = clock()
    start = ""
    while True:
        container = engine.container(name)
        now = clock()
        if container is None:
            raise BalikError(f"container {name}", "is gone", "one that is being waited for")
        if container["State"]["StartedAt"] != start:
            start, running_since = container["State"]["StartedAt"], now
        result, reason = verdict(container, now - running_since, patience.steady)
        if result == "serves":
            return reason
        if result == "failed":
            raise BalikError(f"container {name}", reason, "a healthy one")
        if now - begun > patience.limit:
            raise BalikError(f"container {name}", f"{reason}, after {format_duration(patience.limit)}", "a healthy one")
        time.sleep(_LOOK_EVERY)


class Swap:
    """The containers of one name, and what can be done with them."""

    def __init__(self, engine: Engine, names: Names, patience: Patience) -> None:
        self.engine, self.names, self.patience = engine, names, patience

    # What stands there

    def now(self) -> Json | None:
        return self.engine.container(self.names.name)

    def old(self) -> Json | None:
        """The container that this run found: kept, or still in service."""
        return self.engine.container(self.names.before) or self.now() or self.engine.container(self.names.after)

    # The three ways

    def revert(self, image: Image) -> Json:
        """Bring the container to ``image``, from wherever an earlier attempt left it.

        :returns: evidence: ``kept``, ``health``, ``without_service`` (seconds from the old one's stop until the new
            one was healthy; absent when this call did not stop it).
        :raises BalikError: the new one did not become healthy; the old one is back in service, as the message says.
        """
        stopped_at = self._bring_in(image)
        self._settle()
        try:
            self._start(self.names.name)
            health = wait_until_serving(self.engine, self.names.name, self.patience)
        except BalikError as error:
            if self.engine.container(self.names.before) is None:
                raise
            raise self._back_to_old(error) from error
        evidence: Json = {"health": health}
        if self.engine.container(self.names.before):
            evidence["kept"] = self.names.before
        if stopped_at is not None:
            evidence["without_service"] = round(time.monotonic() - stopped_at, 2)
        return evidence

    def _bring_in(self, image: Image) -> float | None:
        """Give the name to a container of ``image``, if it has not got it; says when the old one was stopped."""
        now, kept, coming = (
            self.now(),
            self.engine.container(self.names.before),
            self.engine.container(self.names.after),
        )
        if now and (kept or now["Image"] == image.id):
            if now["Image"] != image.id:
                raise BalikError(
                    f"container {self.names.name}",
                    f"runs {now['Config']['Image']}, though this run already replaced it once (it kept "
                    f"{self.names.before}): somebody else has replaced it since",
                    image.short,
                    f"Remove {self.names.before} if it is no longer wanted, and run again.",
                )
            return None
        source = now or kept
        if source is None:
            raise BalikError(f"container {self.names.name}", "does not exist on this engine")
        ready = coming and coming["Image"] == image.id and same_networks(source, coming)
        # As long as the old one runs, the coming one may be half made; it is made anew, which costs nothing.
        if not (ready and not source["State"]["Running"]):
            if coming:
                self._hand_policy(coming, source)
                self._remove(self.names.after)
            if not now:
                # An attempt failed and was killed on its way back to the old one.
                self._rename(self.names.before, self.names.name)
            self._create(self.names.after, source, image)
        return self._take_place(coming=self.names.after, leaving_as=self.names.before)

    def _back_to_old(self, error: BalikError) -> BalikError:
        failed = self.names.failed
        self._remove(failed)
        self._take_place(coming=self.names.before, leaving_as=failed)
        self._start(self.names.name)
        return BalikError(
            error.what,
            f"the new one did not come up ({error.found}); the old one is in service again",
            do=f"The new one is kept, stopped, as {failed}: see `docker logs --tail 50 {failed}` and "
            f"`docker inspect --format '{{{{json .State}}}}' {failed}`.",
        )

    def undo(self, image: Image) -> Json:
        """Put back what this run replaced: the kept container, or one like the present one from the saved image.

        :param image: what the container ran before this run.
        :returns: evidence, as :meth:`revert`; ``from`` says where it was put back from.
        :raises BalikError: it did not come up; the reverted one is in service again.
        """
        now, kept = self.now(), self.engine.container(self.names.before)
        evidence: Json = {"from": "nothing had to be put back"}
        stopped_at = None
        leaving = self.engine.container(self.names.after)
        for taker in (now, kept):
            # Where `main` or an undo was interrupted, the other one may still hold the policy.
            if leaving and taker:
                self._hand_policy(leaving, taker)
        if kept and kept["State"]["StartedAt"].startswith(_NEVER):
            # Made by an undo that was interrupted.
            self._remove(self.names.before)
            kept = None
        if not (now and now["Image"] == image.id and not kept):
            if not kept:
                source = now or leaving
                if source is None:
                    raise BalikError(f"container {self.names.name}", "does not exist on this engine, nor what was kept")
                self._create(self.names.before, source, image)
            elif now:
                self._remove(self.names.after)
            evidence["from"] = "the kept container" if kept else f"the saved image {image.short}; the kept one is gone"
            stopped_at = self._take_place(coming=self.names.before, leaving_as=self.names.after)
        self._start(self.names.name)
        try:
            evidence["health"] = wait_until_serving(self.engine, self.names.name, self.patience)
        except BalikError as error:
            if self.engine.container(self.names.after) is None:
                raise
            self._take_place(coming=self.names.after, leaving_as=self.names.before)
            self._start(self.names.name)
            raise BalikError(
                error.what,
                f"what was put back did not come up ({error.found}); the reverted one is in service again",
                do=f"See `docker logs --tail 50 {self.names.before}`.",
            ) from error
        if stopped_at is not None:
            evidence["without_service"] = round(time.monotonic() - stopped_at, 2)
        self._remove(self.names.after)
        return evidence

    def verify(self, image: Image) -> str:
        """Read what runs; in a few words.

        :raises BalikError: another image, or not running, or not healthy.
        """
        now = self.now()
        if now is None:
            raise BalikError(f"container {self.names.name}", "does not exist on this engine", image.short)
        if now["Image"] != image.id:
            found = Image(now["Config"]["Image"], now["Image"])
            raise BalikError(f"container {self.names.name}", f"runs {found.short}", image.short)
        # It was waited for when it was brought in.
        return wait_until_serving(self.engine, self.names.name, Patience(self.patience.limit, steady=0))

    # Single acts, each of which finds its work already done

    def _take_place(self, coming: str, leaving_as: str) -> float:
        """Give the name to ``coming``; what had it stops and becomes ``leaving_as``. The clock when the stop began."""
        begun = time.monotonic()
        now, new = self.now(), self.engine.container(coming)
        if now:
            if new:
                self._hand_policy(now, new)
            self._stop(now)
            self._set_policy(now["Id"], _NO_RESTART)
            self._rename(self.names.name, leaving_as)
        self._rename(coming, self.names.name)
        return begun

    def _settle(self) -> None:
        """The kept one stays down, and has given its restart policy, also after a kill on the way back to it."""
        now, kept = self.now(), self.engine.container(self.names.before)
        if now and kept:
            self._hand_policy(kept, now)
            self._stop(kept)
            if _restarts(kept["HostConfig"]["RestartPolicy"]):
                self._set_policy(kept["Id"], _NO_RESTART)

    def _hand_policy(self, giver: Json, taker: Json) -> None:
        policy = giver["HostConfig"]["RestartPolicy"]
        if _restarts(policy) and not _restarts(taker["HostConfig"]["RestartPolicy"]):
            self._set_policy(taker["Id"], policy)

    def _set_policy(self, container: str, policy: Json) -> None:
        with self.engine.telling(f"container {self.names.name}"):
            self.engine.client.update_container(container, restart_policy=policy)

    def _stop(self, container: Json) -> None:
        state = container["State"]
        if not (state["Running"] or state["Restarting"]):
            return
        limit = container["Config"].get("StopTimeout")
        with self.engine.telling(f"container {self.names.name}"):
            # Named, because the SDK's own limit for the answer follows it.
            self.engine.client.stop(container["Id"], timeout=10 if limit is None else limit)

    def _start(self, name: str) -> None:
        with self.engine.telling(f"container {name}"):
            # The engine says 304 to one that runs.
            self.engine.client.start(name)

    def _rename(self, name: str, to: str) -> None:
        with self.engine.telling(f"container {name}"):
            self.engine.client.rename(name, to)

    def _remove(self, name: str) -> None:
        """Remove a container if it is there; its volumes stay, they are those of the one in service."""
        if self.engine.container(name):
            with self.engine.telling(f"container {name}"):
                self.engine.client.remove_container(name, v=False, force=True)

    def _create(self, name: str, source: Json, image: Image) -> None:
        old_image = self.engine.local_image(source["Image"])
        if old_image is None:
            raise BalikError(
                f"container {self.names.name}",
                f"its image {source['Config']['Image']} is no longer on this engine, so that its own settings "
                "cannot be told from the image's",
                do="Load or pull that image again.",
            )
        body, later = creation(source, old_image, image.reference, self.engine.api)
        # Left behind by a run that was killed while the engine was still at it.
        self._remove(name)
        with self.engine.telling(f"container {name}"):
            client = self.engine.client
            made = client.create_container_from_config(body, name=name)["Id"]
            for network, endpoint in later.items():
                fixed = endpoint.get("IPAMConfig") or {}
                client.connect_container_to_network(
                    made,
                    network,
                    ipv4_address=fixed.get("IPv4Address"),
                    ipv6_address=fixed.get("IPv6Address"),
                    link_local_ips=fixed.get("LinkLocalIPs"),
                    aliases=endpoint.get("Aliases"),
                    links=[tuple(link.split(":", 1)) for link in endpoint.get("Links") or ()],
                    driver_opt=endpoint.get("DriverOpts"),
                )
            got = client.inspect_container(made)["Image"]
        if got != image.id:
            self._remove(name)
            raise BalikError(
                f"image {image.reference}", f"means {got} now, though it was {image.id} a moment ago", do="Run again."
            )


def _restarts(policy: Json) -> bool:
    return policy.get("Name", "") not in ("", "no")
