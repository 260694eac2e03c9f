"""Names of images: when two mean the same, what is pinned by a digest, and what a node says it runs."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import BalikError

_DIGEST = r"sha256:[0-9a-f]{64}"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<repository>(?:[A-Za-z0-9][\w.-]*(?::\d+)?/)?{_PART}(?:/{_PART})*)"
    rf"(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@(?P<digest>{_DIGEST}))?",
    re.ASCII,
)


class Image(NamedTuple):
    """``docker.io/library/nginx``, ``1.25`` (empty with a digest alone), ``sha256:…`` (empty without)."""

    repository: str
    tag: str
    digest: str

    @classmethod
    def of(cls, reference: str) -> Image:
        """What a reference means, with the defaults that a node fills in.

        :raises BalikError: it is none.
        """
        found = _REFERENCE.fullmatch(reference)
        if not found:
            raise BalikError(
                f"image {reference!r}", "is no name of an image", "repository@sha256:<64 hex digits> or repository:tag"
            )
        repository, tag, digest = found["repository"], found["tag"] or "", found["digest"] or ""
        first, _, rest = repository.partition("/")
        if not rest or not ("." in first or ":" in first or first == "localhost"):
            repository = f"docker.io/{repository if rest else f'library/{repository}'}"
        if repository.startswith("index.docker.io/"):
            repository = repository.removeprefix("index.")
        return cls(repository, tag or ("" if digest else "latest"), digest)

    @classmethod
    def target(cls, reference: str) -> Image:
        """The same of what a plan goes back to, which says what release it is.

        :raises BalikError: it is none, or names neither a tag nor a digest, which a node takes for ``latest``.
        """
        image = cls.of(reference)
        found = _REFERENCE.fullmatch(reference)
        if found and not found["tag"] and not found["digest"]:
            raise BalikError(
                f"image {reference!r}",
                "it names neither a tag nor a digest, so that it could be any release",
                "repository@sha256:<64 hex digits> or repository:tag",
            )
        return image

    def same(self, other: Image) -> bool:
        """Whether both name the same content: a digest is the content, whatever tag stands beside it."""
        if self.repository != other.repository or bool(self.digest) != bool(other.digest):
            return False
        return self.digest == other.digest if self.digest else self.tag == other.tag


def parse(reference: str) -> Image | None:
    """Like :meth:`Image.of`, ``None`` for what is no reference (a workload may hold anything)."""
    try:
        return Image.of(reference)
    except BalikError:
        return None


def same(one: str, other: str) -> bool:
    """Whether two references name the same content, as far as names can tell."""
    first, second = parse(one), parse(other)
    return one == other or bool(first and second and first.same(second))


def digest_of(image_id: str) -> str:
    """The digest in a pod's ``imageID`` (``docker-pullable://repo@sha256:…``); empty where the node gives none.

    A bare ``sha256:…`` is the id of the image's configuration, which is no digest of a registry.
    """
    found = re.search(rf"@({_DIGEST})$", image_id)
    return found[1] if found else ""


def short(reference: str) -> str:
    """The reference with twelve hex digits of its digest, for people."""
    return re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]+", r"\1…", reference)
