"""On Debian 13: its Python, with the newer ansible-core, the unit and project tests and the flow of a rollback; and its
PostgreSQL, with a restore, a way down, a loss statement and the record."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
#: Of this machine: it may have to trust more than a new container does.
BUNDLE = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
INSIDE = "/etc/ssl/certs/ca-certificates.crt"
CONTAINER = f"balik-debian-13-{os.getpid()}"
LIMIT = 900
FLOW = "question or refused_together or runner"
DATABASE = " ".join(
    f"tests/integration/test_{name}.py"
    for name in ("db_restore", "db_restore_tables", "loss", "loss_flow", "record_postgresql")
)
ON_DATABASE = (
    "each_format or eight_writing or carried_over or killed_while_swapping or server_dies or come_back_and"
    " or each_row_that or lost_can_be_written or what_going_down_destroys or acknowledged or habits"
)
COMMANDS = f"""
set -e
mkdir /balik
tar --directory /house --create --exclude ./.venv --exclude ./.balik --exclude __pycache__ . | tar --directory /balik -x
cd /balik
git config --global --add safe.directory '*'
python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check "$UV"
.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode -r pyproject.toml --extra test
export PATH=$PWD/.venv/bin:$PATH
ansible --version | grep -E 'core|python version'
pytest -q -m 'not docker' tests/unit tests/project
pytest -q -m 'not docker' tests/integration/test_flow.py -k '{FLOW}'
ls /usr/lib/postgresql
pytest -q -m 'not docker' {DATABASE} -k '{ON_DATABASE}'
"""


@pytest.mark.docker
def test_python_3_13_and_postgresql_17() -> None:
    subprocess.run([HOUSE / "tools" / "images", "newer"], check=True, timeout=LIMIT)
    uv = next(line for line in (HOUSE / "tools" / "setup").read_text().splitlines() if line.startswith("uv="))
    volumes = ["--volume", f"{HOUSE}:/house:ro", "--volume", f"{BUNDLE}:{INSIDE}:ro"]
    environment = [
        "--env",
        f"SSL_CERT_FILE={INSIDE}",
        "--env",
        f"PIP_CERT={INSIDE}",
        "--env",
        uv.replace("uv=", "UV=uv=="),
    ]
    run = ["docker", "run", "--rm", "--name", CONTAINER, *volumes, *environment]
    try:
        done = subprocess.run(
            [*run, "balik/newer:13", "bash", "-c", COMMANDS],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    finally:
        # Gone by itself, unless the limit ended its client only.
        subprocess.run(["docker", "rm", "--force", CONTAINER], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "[core 2.21." in done.stdout, done.stdout
    assert "python version = 3.13." in done.stdout, done.stdout
    assert "\n17\n" in done.stdout, done.stdout
