"""image-revert with a real registry: digests, tags that move, images that are gone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.docker_revert.engine import Engine, Image
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration.test_image_revert import BAD, GOOD, HOST, step
from tests.servers.docker_engine import Lab, docker, docker_lab, image_id, inspect
from tests.servers.registry import Registry, registry

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", name="store")
def _store() -> Iterator[Registry]:
    with registry() as server:
        yield server


@pytest.fixture(name="lab")
def _lab() -> Iterator[Lab]:
    with docker_lab() as lab:
        yield lab


@pytest.fixture(name="app")
def _app(lab: Lab) -> str:
    return lab.run("app", lab.image(BAD, "small"))


def pushed(store: Registry, lab: Lab, version: str, tag: str) -> tuple[str, str]:
    """Push an image and forget it locally: (its repository in the registry, its digest)."""
    image, name = lab.image(version, "small"), f"{lab.prefix}app:{tag}"
    digest = store.push(image, name)
    docker("rmi", image)
    return f"{store.address}/{lab.prefix}app", digest


def runs(container: str) -> str:
    """The version that the image of a running container says in its environment."""
    seen = inspect(container)
    assert seen["State"]["Running"]
    return next(entry[len("APP_VERSION=") :] for entry in seen["Config"]["Env"] if entry.startswith("APP_VERSION="))


def test_by_digest_although_the_tag_has_moved(store: Registry, lab: Lab, app: str) -> None:
    repository, digest = pushed(store, lab, GOOD, "stable")
    pushed(store, lab, "1.8.0", "stable")
    target = f"{repository}@{digest}"

    seen = step("check", app, image=target)
    assert target.partition("@")[0] in seen["says"] and digest[:19] in seen["says"]
    assert not docker("images", "--quiet", repository), "check has pulled"

    done = step("main", app, image=target)
    assert done["evidence"]["containers"][app]["digest"] == digest
    assert done["evidence"]["containers"][app]["image_id"] == image_id(target) == inspect(app)["Image"]
    assert inspect(app)["Config"]["Image"] == target
    step("verify", app, image=target)
    # With a tag beside it, the digest counts.
    assert not step("main", app, image=f"{repository}:stable@{digest}")["changed"]
    assert step("check", app, image=target)["says"].startswith(f"{app}: already")


def test_a_moved_tag_means_what_is_here_unless_the_registry_is_asked(store: Registry, lab: Lab, app: str) -> None:
    repository, first = pushed(store, lab, "1.8.0", "stable")
    tag = f"{repository}:stable"
    _, second = pushed(store, lab, GOOD, "stable")
    docker("pull", "--quiet", f"{repository}@{first}")
    docker("tag", f"{repository}@{first}", tag)
    engine = Engine(HOST)
    assert engine.find_image(tag, "missing") == engine.find_image(tag, "never")
    assert engine.find_image(tag, "missing").digest == first
    there = engine.find_image(tag, "always")
    assert there == Image(tag, digest=second, platforms=(engine.platform,))
    step("main", app, image=tag, pull="always")
    assert runs(app) == GOOD


def test_a_digest_that_the_registry_no_longer_has(store: Registry, lab: Lab, app: str) -> None:
    repository, digest = pushed(store, lab, GOOD, "stable")
    store.delete(f"{lab.prefix}app", digest)
    was = inspect(app)
    says = re.escape(f"image {repository}@{digest}: is not on this engine, and its registry could not give it")
    for entry in ("check", "main"):
        with pytest.raises(BalikError, match=f"{says}.*No container was touched"):
            step(entry, app, image=f"{repository}@{digest}")
    assert inspect(app)["Id"] == was["Id"] and inspect(app)["State"]["StartedAt"] == was["State"]["StartedAt"]


def test_undo_fetches_what_ran_before_when_it_is_gone(store: Registry, lab: Lab) -> None:
    repository, digest = pushed(store, lab, BAD, "new")
    good = lab.image(GOOD, "small")
    docker("pull", "--quiet", f"{repository}:new")
    app = lab.run("app", f"{repository}:new")
    before = step("check", app, image=good)["before"]
    assert before[app]["digest"] == digest
    kept = step("main", app, image=good)["evidence"]["containers"][app]["kept"]
    docker("rm", kept)
    docker("rmi", f"{repository}:new")
    step("undo", app, image=good, saved=before)
    assert runs(app) == BAD
    assert inspect(app)["Config"]["Image"] == f"{repository}@{digest}"
