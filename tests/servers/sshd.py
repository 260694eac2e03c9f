"""Debian's OpenSSH server on loopback, for the user who runs the tests, with a key of its own.

``with sshd(tmp_path) as server: subprocess.run(["ssh", *server.options, "-p", str(server.port), server.target, …])``
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.loopback import free_port, wait_for_port


@dataclass
class Sshd:
    """``options`` make ``ssh`` and ``sftp`` take this server's key and nothing of their user's settings."""

    port: int
    target: str
    options: list[str]
    pid: int


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """A running server; ended afterwards with all its sessions."""
    program = shutil.which("sshd", path=f"/usr/sbin:{os.environ['PATH']}")
    if not program:
        raise FileNotFoundError("no sshd: apt-get install openssh-server")
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, capture_output=True
        )
    port = free_port()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation's empty folder
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\nPasswordAuthentication no\n"
        "PermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_for_port(port, process, log=folder / "log")
        options = ["-F", "none", "-i", str(folder / "user"), "-o", f"UserKnownHostsFile={folder / 'known'}"]
        options += ["-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"]
        yield Sshd(port, f"{getpass.getuser()}@127.0.0.1", options, process.pid)
    finally:
        process.terminate()
        process.wait(10)
