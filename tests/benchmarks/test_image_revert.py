"""How long a revert takes: one container, and ten at once."""

from __future__ import annotations

import time

import pytest

from tests.integration.test_image_revert import BAD, GOOD, step
from tests.servers.docker_engine import docker_lab


@pytest.mark.benchmark
@pytest.mark.docker
def test_one_and_ten() -> None:
    with docker_lab() as lab:
        check = "HEALTHCHECK --interval=1s CMD bash -c ':</dev/tcp/127.0.0.1/8000'"
        bad, good = (lab.image(version, "unchecked", extra=check) for version in (BAD, GOOD))
        for count in (1, 10):
            names = [lab.run(f"{count}-{number}", bad) for number in range(count)]
            begun = time.monotonic()
            done = step("main", *names, image=good, limit="2m")["evidence"]["containers"]
            seconds = time.monotonic() - begun
            gaps = sorted(evidence["without_service"] for evidence in done.values())
            print(f"\n{count} at once: {seconds:.2f} s; each without service {gaps[0]:.2f} to {gaps[-1]:.2f} s")
            assert seconds < 60
            lab.remove_containers()
