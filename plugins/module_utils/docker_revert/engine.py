"""One Docker engine: its containers by name, its images by reference, its errors as sentences."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BalikError, Unreachable
from ..units import label_terms

try:
    import docker
    import requests
except ImportError:  # reported by Engine, which knows which host this is about
    docker = None
else:

    class _Client(docker.APIClient):  # type: ignore[misc]
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            """Keep to the plan's authority: requests prefers REQUESTS_CA_BUNDLE to what its session was told."""
            verify = self.verify if verify is None else verify
            return super().merge_environment_settings(url, proxies, stream, verify, cert)


DEFAULT_HOST = "unix:///var/run/docker.sock"
_ID = re.compile(r"(sha256:)?[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Creating a container on a busy disk takes the engine longer than the SDK's minute.
_ANSWER_LIMIT = 180


@dataclass(frozen=True)
class Image:
    """What a reference means here and now.

    ``id`` is empty for an image that is in the registry only; ``digest`` is empty when no registry is known.
    """

    reference: str
    id: str = ""
    digest: str = ""
    platforms: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """``lawyers-hub:1.9.4 (sha256:ab12cd34ef56)``."""
        name = shorten(self.reference)
        known = shorten(self.id or self.digest)
        return f"{name} ({known})" if known and known != name else name


def shorten(text: str) -> str:
    """Digests and ids in a text cut to twelve figures, as ``docker images`` shows them."""
    return re.sub(r"(sha256:)?([0-9a-f]{12})[0-9a-f]{52}", lambda found: "sha256:" + found[2], text)


def repository(reference: str) -> str:
    """``registry:5000/team/app`` of ``registry:5000/team/app:1.0@sha256:…``."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def parse_reference(reference: str) -> str:
    """The reference as the engine knows it: a tag beside a digest says nothing more and goes.

    :raises BalikError: no tag and no digest, or a digest that is cut off.
    """
    if _ID.fullmatch(reference):
        return reference if reference.startswith("sha256:") else f"sha256:{reference}"
    name, at, digest = reference.partition("@")
    if at:
        if not _DIGEST.fullmatch(digest):
            raise BalikError(f"image {reference}", f"the digest {digest!r}", "sha256: and 64 hexadecimal figures")
        return f"{repository(name)}@{digest}"
    if not name or repository(name) == name or name.endswith(":"):
        raise BalikError(
            f"image {reference!r}",
            "it names neither a tag nor a digest, so that it could be any release",
            "name@sha256:..., name:tag or an image id",
        )
    return name


class Engine:
    """The engine at ``docker_host``; each thread talks through a client of its own.

    :param docker_host: ``unix:///var/run/docker.sock`` or ``tcp://host:2376``.
    :param cert_path: folder with ca.pem, cert.pem and key.pem for TLS over TCP.
    :raises Unreachable: no engine answers there, or this user may not talk to it.
    """

    def __init__(self, docker_host: str = DEFAULT_HOST, cert_path: str = "") -> None:
        if not docker_host.startswith(("unix://", "tcp://")):
            raise BalikError(
                "image_revert_docker_host",
                f"found {docker_host!r}",
                "unix:///path/of/its/socket or tcp://host:2376",
                "To go there over SSH, name the host in image_revert_hosts: Ansible does that itself.",
            )
        self.docker_host, self.cert_path = docker_host, cert_path
        self._clients = threading.local()
        if docker is None:
            raise BalikError(
                "Python on this host",
                "has no Docker SDK",
                "the module `docker` 5.0 or newer",
                "Install Debian's python3-docker (or `docker` from PyPI).",
            )
        version = self.client.version()
        self.platform = f"{version['Os']}/{version['Arch']}"
        #: The API's version as a pair of numbers, e.g. (1, 41).
        self.api = tuple(int(part) for part in self.client.api_version.split("."))

    @property
    def client(self) -> Any:
        """This thread's ``docker.APIClient``."""
        if not hasattr(self._clients, "client"):
            self._clients.client = self._connect()
        return self._clients.client

    def _connect(self) -> Any:
        try:
            tls: Any = False
            if self.cert_path:
                folder = Path(self.cert_path)
                pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
                tls = docker.tls.TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)
            return _Client(base_url=self.docker_host, version="auto", timeout=_ANSWER_LIMIT, tls=tls)
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        text = str(error)
        what = f"Docker engine at {self.docker_host}"
        if "PermissionError" in text or "Permission denied" in text:
            do = "Give this user the group of the socket (usually `docker`), or set `become: true` for the host."
            return Unreachable(what, "this user may not talk to it (permission denied)", do=do)
        if isinstance(error, docker.errors.TLSParameterError):
            found, expected = f"{self.cert_path} lacks a file", "ca.pem, cert.pem and key.pem"
            return Unreachable(what, found, expected, "Correct image_revert_docker_cert_path.")
        if "FileNotFoundError" in text or "No such file" in text:
            found = "there is no such socket"
        elif "CERTIFICATE_VERIFY_FAILED" in text:
            found, expected = "its certificate is not to be trusted", "one of ca.pem's for that name"
            return Unreachable(
                what, found, expected, "Correct image_revert_docker_host or image_revert_docker_cert_path."
            )
        elif "refused" in text.lower():
            found = "the connection is refused"
        else:
            found = f"does not answer ({text[:200]})"
        return Unreachable(
            what, found, do="See `systemctl status docker` there, or name another one in image_revert_docker_host."
        )

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Turn what the SDK raises into a :class:`BalikError` about ``what``."""
        try:
            yield
        except docker.errors.APIError as error:
            text = str(error.explanation or error).strip()[:400]
            do = "Make room (`docker system df` says what takes it)." if "no space left" in text else ""
            raise BalikError(what, f"the engine refused: {text}", do=do) from error
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise self._unreachable(error) from error

    # Containers

    def container(self, name: str) -> dict[str, Any] | None:
        """What ``docker inspect`` says about the container of exactly this name, or ``None``."""
        with self.telling(f"container {name}"):
            try:
                found: dict[str, Any] = self.client.inspect_container(name)
            except docker.errors.NotFound:
                return None
        # The engine also takes the beginning of an id for a name.
        return found if found["Name"] == f"/{name}" else None

    def containers(self, labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """All containers, running or not, that carry ``labels``, as ``docker inspect`` shows them."""
        filters = {"label": label_terms(labels or {})}
        found = []
        with self.telling(f"containers of {self.docker_host}"):
            for entry in self.client.containers(all=True, filters=filters):
                try:
                    found.append(self.client.inspect_container(entry["Id"]))
                except docker.errors.NotFound:
                    continue  # gone since it was listed
        return found

    # Images

    def local_image(self, reference: str) -> dict[str, Any] | None:
        """What ``docker image inspect`` says, or ``None`` when the image is not on this engine."""
        with self.telling(f"image {reference}"):
            try:
                found: dict[str, Any] = self.client.inspect_image(reference)
            except docker.errors.ImageNotFound:
                return None
        return found

    def find_image(self, reference: str, pull: str) -> Image:
        """What a reference means, without fetching anything.

        :param pull: ``missing``, ``always`` (a tag's meaning is asked of the registry) or ``never``.
        :raises BalikError: it is neither here nor, where ``pull`` allows, in its registry.
        """
        name = parse_reference(reference)
        here = self.local_image(name)
        if here and (pull != "always" or "@" in name or name.startswith("sha256:")):
            return _image(name, here)
        if name.startswith("sha256:"):
            raise BalikError(
                f"image {name}",
                "is not on this engine, and an image id cannot be fetched",
                do="Name it by repository and digest (name@sha256:...), or load it with `docker load`.",
            )
        if pull == "never":
            raise BalikError(
                f"image {name}", "is not on this engine", do="Load it, or let it be pulled (image_revert_pull)."
            )
        there = self._in_registry(name)
        if here and _digest_of(name, here) == there.digest:
            return _image(name, here)
        return there

    def _in_registry(self, name: str) -> Image:
        try:
            answer = self.client.inspect_distribution(name)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise self._not_found(name, error) from error
        platforms = tuple(
            f"{platform['os']}/{platform['architecture']}"
            for platform in answer.get("Platforms") or ()
            if platform.get("os") and platform.get("architecture")
        )
        return Image(name, digest=answer["Descriptor"]["digest"], platforms=platforms)

    def fetch_image(self, reference: str, pull: str) -> Image:
        """Like :meth:`find_image`, and fetches the image when it is in the registry only; ``id`` is then known."""
        found = self.find_image(reference, pull)
        if found.id:
            return found
        name = found.reference
        try:
            for line in self.client.pull(name, stream=True, decode=True):
                if "error" in line:
                    raise BalikError(f"image {name}", f"could not be pulled: {str(line['error'])[:400]}")
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise self._not_found(name, error) from error
        here = self.local_image(name)
        if here is None:
            raise BalikError(f"image {name}", "was pulled, and still is not on this engine")
        return _image(name, here)

    @staticmethod
    def _not_found(name: str, error: Exception) -> BalikError:
        text = str(getattr(error, "explanation", None) or error).strip()[:300]
        return BalikError(
            f"image {name}",
            f"is not on this engine, and its registry could not give it: {text}",
            do="See whether it was deleted there, whether this host reaches the registry, and `docker login`; "
            "or load it with `docker load`.",
        )

    def check_platform(self, image: Image, old: Mapping[str, Any]) -> None:
        """Refuse an image that is built for another machine.

        :param old: the inspected image that runs now; what it runs on (emulation, say), the new one may too.
        :raises BalikError: neither the engine's nor the old image's platform is among the image's.
        """
        wanted = {self.platform, f"{old['Os']}/{old['Architecture']}"}
        if image.platforms and not wanted & set(image.platforms):
            raise BalikError(f"image {image.reference}", f"is built for {', '.join(image.platforms)}", self.platform)


def _image(reference: str, inspected: Mapping[str, Any]) -> Image:
    platform = f"{inspected['Os']}/{inspected['Architecture']}"
    return Image(reference, inspected["Id"], _digest_of(reference, inspected), (platform,))


def _digest_of(reference: str, inspected: Mapping[str, Any]) -> str:
    """The registry's digest of a local image, that of the reference's own repository if it has several."""
    known = dict(entry.split("@", 1) for entry in inspected.get("RepoDigests") or ())
    named = reference.partition("@")[2] or known.get(repository(reference))
    return named or next(iter(known.values()), "")


def image_of(engine: Engine, container: Mapping[str, Any]) -> Image:
    """The image that a container was made from, under the name that it was configured with."""
    here = engine.local_image(container["Image"])
    name = container["Config"]["Image"]
    return Image(name, container["Image"], _digest_of(name, here) if here else "")
