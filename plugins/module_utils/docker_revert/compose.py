"""Going back through Compose, for containers that a Compose project owns.

Compose replaces its containers itself, so none is kept; the way back is the earlier image, by name where the name still
means it, by id otherwise. The images stand in a small override file beside the project's own files, which are not
touched: until they name the earlier image too, whoever starts the project must give both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BalikError
from .engine import DEFAULT_HOST, Engine, Image, image_of
from .revert import Job, Settings, Wanted, in_parallel, refuse
from .swap import Patience, wait_until_serving

Json = dict[str, Any]
_LABEL = "com.docker.compose."
_OVERRIDE = ".balik-image-revert-{run_id}.yml"
_COMPOSE_LIMIT = 300.0


@dataclass(frozen=True)
class Project:
    """A Compose project that runs on the engine, and the services to bring back (name → image)."""

    engine: Engine
    name: str
    folder: Path
    files: tuple[str, ...]
    services: Mapping[str, str]
    program: tuple[str, ...]
    env_file: str = ""

    @classmethod
    def of(cls, engine: Engine, asked: Mapping[str, Any]) -> Project:
        """Find the project by its folder.

        :param asked: ``project_dir``, ``services`` and perhaps ``files``; by default those that it was started with.
        :raises BalikError: it does not run here, or there is no Compose on this host.
        """
        folder = Path(asked["project_dir"]).resolve()
        if not asked["services"]:
            raise BalikError(f"Compose project {folder}", "names no services to bring back", "at least one")
        found = [
            container["Config"]["Labels"]
            for container in engine.containers({f"{_LABEL}project.working_dir": ""})
            if Path(container["Config"]["Labels"][f"{_LABEL}project.working_dir"]).resolve() == folder
        ]
        names = {labels[f"{_LABEL}project"] for labels in found}
        if len(names) != 1:
            listed = f"several run from there: {', '.join(sorted(names))}" if names else "none of its containers exists"
            raise BalikError(f"Compose project {folder}", f"{listed} at {engine.docker_host}", "exactly one project")
        started_with = found[0].get(f"{_LABEL}project.config_files", "").split(",")
        files = asked.get("files") or [file for file in started_with if ".balik-image-revert-" not in file]
        missing = [file for file in files if not (folder / file).is_file()]
        if missing or not files:
            raise BalikError(
                f"Compose project {folder}",
                f"has no file {', '.join(missing)}" if missing else "does not say which files it was started with",
                do="Name its files in image_revert_compose.files.",
            )
        env_file = found[0].get(f"{_LABEL}project.environment_file", "")
        return cls(engine, names.pop(), folder, tuple(files), asked["services"], program(), env_file)

    # The entry points

    def wanted(self, limit: float) -> list[Wanted]:
        """One for each container of each service, called ``service-number`` as Compose does."""
        return [
            Wanted(f"{service}-{number}", image, limit)
            for service, image in sorted(self.services.items())
            for number in sorted(self._containers(service))
        ]

    def examine(self, wanted: list[Wanted], settings: Settings, fetch: bool = False) -> list[Job]:
        """What runs and what would; changes no container.

        :raises BalikError: an image that cannot be had, or the project's files cannot be read.
        """
        self._compose(["config", "--quiet"], "its files cannot be read")
        resolve = self.engine.fetch_image if fetch else self.engine.find_image
        references = sorted({one.image for one in wanted})
        images, unknown = in_parallel(references, lambda name: resolve(name, settings.pull), settings.parallel)
        if unknown:
            raise BalikError("The image to go back to", "\n".join(unknown.values()), do="No container was touched.")
        jobs = []
        for one in wanted:
            container, target = self._container(one.name), images[one.image]
            old_image = self.engine.local_image(container["Image"])
            if old_image:
                self.engine.check_platform(target, old_image)
            already = bool(target.id) and container["Image"] == target.id
            note = f"service of the Compose project {self.name}"
            jobs.append(Job(one, container, image_of(self.engine, container), target, already, note))
        return jobs

    def main(self, wanted: list[Wanted], settings: Settings) -> tuple[list[Job], dict[str, Json], bool]:
        """Bring the services back, all in one call of Compose; (what was found, name → evidence, changed).

        :raises BalikError: a service did not come up; all that were replaced are back on the image they had.
        """
        jobs = self.examine(wanted, settings, fetch=True)
        go = {_service(job.wanted.name): job for job in jobs if not job.already}
        begun = time.monotonic()
        try:
            if go:
                self._up({service: job.target.reference for service, job in go.items()}, wanted, settings)
            health = self._wait(jobs_images(jobs), wanted, settings)
        except BalikError as error:
            if not go:
                raise
            self._up({service: self._again(job.was) for service, job in go.items()}, wanted, settings)
            raise BalikError(
                f"Compose project {self.name}",
                f"did not come up, its services run again what they ran before.\n{error}",
            ) from error
        took = {"without_service": round(time.monotonic() - begun, 2)} if go else {}
        override = {"override": str(self._override(settings))} if go else {}
        return jobs, {name: {"health": words, **took, **override} for name, words in health.items()}, bool(go)

    def undo(self, wanted: list[Wanted], settings: Settings, saved: Mapping[str, Json]) -> tuple[dict[str, Json], bool]:
        """Bring the services to the images that they ran before this run; (name → evidence, changed).

        :raises BalikError: nothing was saved, the image is gone, or it did not come up.
        """
        was: dict[str, Image] = {}
        for one in wanted:
            if one.name not in saved:
                raise BalikError(f"{one.name} of Compose project {self.name}", "nothing was saved of it in this run")
            was[one.name] = Image(saved[one.name]["image"], saved[one.name]["image_id"], saved[one.name]["digest"])
        go = {
            _service(name): self._again(image)
            for name, image in was.items()
            if self._container(name)["Image"] != image.id
        }
        if go:
            self._up(go, wanted, settings)
        health = self._wait({name: image.id for name, image in was.items()}, wanted, settings)
        source = f"the image before, through {self._override(settings)}" if go else "nothing had to be put back"
        return {name: {"from": source, "health": words} for name, words in health.items()}, bool(go)

    def verify(self, wanted: list[Wanted], settings: Settings) -> dict[str, str]:
        """Read what runs; name → a few words.

        :raises BalikError: a service runs another image, or does not serve.
        """
        images = {one.image: self.engine.find_image(one.image, "never") for one in wanted}
        steady = Settings(settings.run_id, settings.pull, 0, settings.parallel)
        health = self._wait({one.name: images[one.image].id for one in wanted}, wanted, steady)
        return {one.name: f"{images[one.image].short}, {health[one.name]}" for one in wanted}

    # Pieces

    def _containers(self, service: str) -> dict[int, Json]:
        """Number → container of a service.

        :raises BalikError: the service has none.
        """
        labels = {f"{_LABEL}project": self.name, f"{_LABEL}service": service, f"{_LABEL}oneoff": "False"}
        # Compose, killed while it replaces one, leaves two of a number; it takes the newer one up again.
        found = sorted(self.engine.containers(labels), key=lambda container: container["Created"])
        if not found:
            raise BalikError(f"service {service} of Compose project {self.name}", "has no container")
        return {int(container["Config"]["Labels"][f"{_LABEL}container-number"]): container for container in found}

    def _container(self, name: str) -> Json:
        found = self._containers(_service(name)).get(int(name.rpartition("-")[2]))
        if found is None:
            raise BalikError(f"{name} of Compose project {self.name}", "is gone")
        return found

    def _again(self, image: Image) -> str:
        """A reference that means this image and no other.

        :raises BalikError: the image is no longer on the engine.
        """
        named = self.engine.local_image(image.reference)
        if named is not None and named["Id"] == image.id:
            return image.reference
        if self.engine.local_image(image.id) is None:
            raise BalikError(f"image {image.short}", "is no longer on this engine", do="Load or pull it again.")
        return image.id

    def _wait(self, images: Mapping[str, str], wanted: Iterable[Wanted], settings: Settings) -> dict[str, str]:
        limits = {one.name: one.limit for one in wanted}

        def see(name: str) -> str:
            container = self._container(name)
            if container["Image"] != images[name]:
                found = Image(container["Config"]["Image"], container["Image"])
                raise BalikError(
                    f"{name} of Compose project {self.name}", f"runs {found.short}", Image(images[name]).short
                )
            return wait_until_serving(
                self.engine, container["Name"].lstrip("/"), Patience(limits[name], settings.steady)
            )

        seen, failed = in_parallel(list(limits), see, settings.parallel)
        refuse(failed, seen)
        return seen

    def _override(self, settings: Settings) -> Path:
        return self.folder / _OVERRIDE.format(run_id=settings.run_id)

    def _up(self, images: Mapping[str, str], wanted: Iterable[Wanted], settings: Settings) -> None:
        override = self._override(settings)
        services = {service: {"image": image} for service, image in sorted(images.items())}
        # JSON is YAML; and docker-compose 1 wants the same version, or none, in all its files.
        version = re.search(r"^version:\s*[\"']?([\d.]+)", (self.folder / self.files[0]).read_text(), re.MULTILINE)
        content = {**({"version": version[1]} if version else {}), "services": services}
        try:
            override.write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise BalikError(f"file {override}", f"cannot be written ({error.strerror})") from error
        # As many as there are; without, Compose goes back to the number in the file.
        numbers = Counter(_service(one.name) for one in wanted)
        scale = [f"--scale={service}={numbers[service]}" for service in sorted(images)]
        more = ["up", "--detach", "--no-deps", "--no-build", *scale, *sorted(images)]
        self._compose(more, "Compose could not start them", (str(override),))

    def _compose(self, arguments: list[str], failure: str, more_files: tuple[str, ...] = ()) -> None:
        files = [part for file in (*self.files, *more_files) for part in ("--file", file)]
        command = [*self.program, "--project-name", self.name, "--project-directory", str(self.folder), *files]
        if self.env_file and Path(self.env_file).is_file():
            command += ["--env-file", self.env_file]
        what = f"Compose project {self.name}"
        try:
            ended = subprocess.run(
                [*command, *arguments],
                cwd=self.folder,
                env={**os.environ, **self._environment()},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMPOSE_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BalikError(what, f"`{self.program[0]}` has not ended within {_COMPOSE_LIMIT:.0f} s") from error
        if ended.returncode:
            raise BalikError(what, f"{failure} (exit code {ended.returncode}): {ended.stderr.strip()[-400:]}")

    def _environment(self) -> dict[str, str]:
        found = {} if self.engine.docker_host == DEFAULT_HOST else {"DOCKER_HOST": self.engine.docker_host}
        if self.engine.cert_path:
            found.update(DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=self.engine.cert_path)
        return found


def jobs_images(jobs: Iterable[Job]) -> dict[str, str]:
    """Name → the id of its target image."""
    return {job.wanted.name: job.target.id for job in jobs}


def _service(name: str) -> str:
    return name.rpartition("-")[0]


def program() -> tuple[str, ...]:
    """The Compose of this host: the plugin of ``docker``, or else docker-compose 1.

    :raises BalikError: there is neither.
    """
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60, check=False)
        if plugin.returncode == 0:
            return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    raise BalikError(
        "Compose",
        "is not on this host",
        "the plugin `docker compose`, or docker-compose 1.27 or newer",
        "Install docker-compose-plugin, or Debian's docker-compose.",
    )
