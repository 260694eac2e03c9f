"""Unpacks the missing collections of collections/requirements.yml out of PyPI's `ansible` wheel, which bundles them.

`ansible-galaxy collection install -r collections/requirements.yml` does the same where Galaxy can be reached; PyPI can
be reached more often. Usage: unpack_collections.py CACHE_FOLDER
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "ansible==12.3.0"
HOUSE = Path(__file__).resolve().parents[1] / "collections"
NEEDLESS = ("tests/", "docs/", "changelogs/", ".github/", ".azure-pipelines/")


def wanted() -> dict[str, str]:
    """Full name → version range, as requirements.yml says (name and version stand on lines of their own)."""
    text = (HOUSE / "requirements.yml").read_text(encoding="utf-8")
    return dict(re.findall(r'- name: (\S+)\n\s+version: "([^"]+)"', text))


def fits(version: str, spec: str) -> bool:
    """Whether ``4.8.5`` satisfies ``>=4.8.5,<5.0.0``."""

    def parts(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", text)[:3])

    tests = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "==": lambda a, b: a == b}
    conditions = re.findall(r"(>=|==|<)\s*([\d.]+)", spec)
    return bool(conditions) and all(tests[sign](parts(version), parts(bound)) for sign, bound in conditions)


def folder(name: str) -> Path:
    return HOUSE / "ansible_collections" / name.replace(".", "/")


def installed(name: str) -> str:
    """The version that is there; '' for none."""
    try:
        manifest = json.loads((folder(name) / "MANIFEST.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return manifest["collection_info"]["version"]


def wheel(cache: Path) -> Path:
    found = list(cache.glob(f"{WHEEL.replace('==', '-')}-*.whl"))
    if not found:
        print(f"setup: downloading {WHEEL} (54 MB) for its collections", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
        subprocess.run(command, check=True)
        found = list(cache.glob(f"{WHEEL.replace('==', '-')}-*.whl"))
    return found[0]


def unpack(archive: zipfile.ZipFile, name: str) -> None:
    """Into a folder beside, then renamed: what was interrupted half way is not taken for installed."""
    prefix = f"ansible_collections/{name.replace('.', '/')}/"
    inside = [name for name in archive.namelist() if name.startswith(prefix)]
    members = [name for name in inside if not name.removeprefix(prefix).startswith(NEEDLESS)]
    with tempfile.TemporaryDirectory(dir=HOUSE) as beside:
        archive.extractall(beside, members)
        shutil.rmtree(folder(name), ignore_errors=True)
        folder(name).parent.mkdir(parents=True, exist_ok=True)
        if members:
            Path(beside, prefix).rename(folder(name))


def main() -> int:
    missing = {name: spec for name, spec in wanted().items() if not fits(installed(name) or "0", spec)}
    if not missing:
        return 0
    print(f"setup: unpacking collections: {', '.join(missing)}", flush=True)
    try:
        archive = zipfile.ZipFile(wheel(Path(sys.argv[1])))
    except (subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        print(
            f"setup: {WHEEL} could not be had from PyPI ({error}). Check the network, or install them from Galaxy: "
            ".venv/bin/ansible-galaxy collection install -r collections/requirements.yml -p collections",
            file=sys.stderr,
        )
        return 1
    with archive:
        for name, spec in missing.items():
            unpack(archive, name)
            if not fits(installed(name) or "0", spec):
                found = installed(name) or "none"
                print(f"setup: {name}: {WHEEL} holds {found}, requirements.yml wants {spec}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
