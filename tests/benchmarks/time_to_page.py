"""How long visitors wait for the maintenance page after the decision, against `ansible localhost -m ping`.

`make demo` first; then `.venv/bin/python -m tests.benchmarks.time_to_page`. It rolls the healthy sandbox back again,
with the glass broken, and looks at both entrances every ten milliseconds.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone

from tools import demo

PINGS = 5
LIMIT = 300


def ping() -> float:
    """Seconds of one `ansible localhost -m ping`."""
    began = time.monotonic()
    command = [str(demo.HOUSE / ".venv/bin/ansible"), "localhost", "-m", "ping"]
    subprocess.run(command, cwd=demo.HOUSE, env=demo.environment(), check=True, capture_output=True)
    return time.monotonic() - began


def first_page(url: str, seen: dict[str, datetime], over: threading.Event) -> None:
    """Note when an entrance first shows the page."""
    while not over.wait(0.01):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            if error.code == 503 and error.headers.get("X-Maintenance"):
                seen[url] = datetime.now(timezone.utc)
                return
        except OSError:
            continue


def main() -> None:
    pings = [ping() for _ in range(PINGS)]
    last = demo.entries_after(0)
    humans = demo.Humans(last[-1].seq if last else 0)
    humans.start()
    seen: dict[str, datetime] = {}
    over = threading.Event()
    for url in (demo.WEB, demo.API):
        threading.Thread(target=first_page, args=(f"{url}/", seen, over), daemon=True).start()
    extra = (
        '{"rollback_break_glass": "a benchmark", "rollback_role": "devops-specialist", "rollback_remedy": "database"}'
    )
    command = demo.ansible("rollback.yml", "-e", extra)
    subprocess.run(command, cwd=demo.HOUSE, env=demo.environment(), check=True, capture_output=True, timeout=LIMIT)
    over.set()
    humans.over.set()
    entries = demo.entries_after(humans.after)
    at = {entry.kind: demo.parse_time(entry.at) for entry in entries}
    watch = next(entry.body["seconds"] for entry in entries if entry.kind == "watched")
    whole = (at["outcome"] - demo.parse_time(entries[0].at)).total_seconds() - watch
    print("| what | seconds |\n|---|---|")
    print(f"| `ansible localhost -m ping`, median of {PINGS} | {statistics.median(pings):.2f} |")
    for name, url in (("nginx", demo.WEB), ("HAProxy", demo.API)):
        print(f"| decision to page, {name} | {(seen[url + '/'] - at['decided']).total_seconds():.2f} |")
    print(f"| whole rollback with the database, without the watch | {whole:.1f} |")


if __name__ == "__main__":
    main()
