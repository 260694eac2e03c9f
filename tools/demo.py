"""`make demo`: Lawyers Hub's production on this machine, a bad release on it, and the plan that takes it off again.

Builds the sandbox, waits until the monitoring has seen what is wrong, runs rollback.yml while the people of the plan
answer from processes of their own, and tells what happened. Exit code 0 only if all of it is as it should be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOUSE / "collections"))

from ansible_collections.balik.rollback.plugins.module_utils.record import Entry, Record  # noqa: E402
from ansible_collections.balik.rollback.plugins.module_utils.units import format_duration, parse_time  # noqa: E402

PRODUCT = "lawyers-hub"
OFFSET = int(os.environ.get("BALIK_SANDBOX_PORT_OFFSET") or 0)
if os.environ.get("BALIK_SANDBOX") == "kubernetes":
    STATE, PORTS = HOUSE / ".balik-kubernetes", (28080, 28080, 29090, 28089)
    NAMES = ["lawyers-hub", "lawyers-hub-kubernetes", "sandbox", "sandbox-kubernetes"]
else:
    STATE, PORTS = HOUSE / ".balik", (18080, 18081, 19090, 18089)
    NAMES = ["lawyers-hub", "sandbox"]
WEB, API, PROMETHEUS, TRAFFIC = (f"http://127.0.0.1:{port + OFFSET}" for port in PORTS)
INVENTORIES = [word for name in NAMES for word in ("-i", f"inventories/{name}")]
ENOUGH_REQUESTS = 20_000
WORDS = {"go": "Go", "sign-off": "sign-off"}


@dataclass(frozen=True)
class Person:
    """Somebody of the plan: how they are called, and what they say when they are asked."""

    name: str
    decides: str = ""
    signs: str = ""


PEOPLE = {
    "lead-engineer": Person("Rina", decides="Dokumen hukum rusak saat disimpan; kembali ke 1.9.4 sekarang"),
    "database-administrator": Person("Bayu", decides="Data korup sejak go-live; snapshot dan checksum-nya ada"),
    "devops-specialist": Person("Agus", decides="Siap mengeksekusi"),
    "qa-lead": Person("Dewi", signs="Simpan, baca, dan tanya sudah dicoba; dokumen sebelum go-live utuh"),
}


class Failed(Exception):
    """What is not as it should be, and where to look."""


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def get(url: str, method: str = "GET") -> Any:
    """The JSON that a URL answers with."""
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=40) as answer:
        return json.load(answer)


def ansible(*arguments: str) -> list[str]:
    return [str(HOUSE / ".venv/bin/ansible-playbook"), *INVENTORIES, *arguments]


def environment() -> dict[str, str]:
    """So that Ansible finds this project's own settings and programs, whatever the shell has set."""
    path = f"{HOUSE / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "ANSIBLE_CONFIG": str(HOUSE / "ansible.cfg"), "PATH": path}


def play(name: str, playbook: str) -> None:
    """Run one of the sandbox's playbooks, telling its plays; the rest of its output goes to a log.

    :raises Failed: it failed; with the log's end.
    """
    began = time.monotonic()
    log = STATE / f"demo-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as kept:
        process = subprocess.Popen(
            ansible(playbook), cwd=HOUSE, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in process.stdout or ():
            kept.write(line)
            if line.startswith("PLAY ["):
                say(f"{format_duration(time.monotonic() - began):>6}  {line[6 : line.rindex(']')]}")
    if process.wait():
        end = log.read_text(encoding="utf-8").splitlines()[-25:]
        raise Failed("\n".join([f"{playbook} failed; the end of {log}:", *end]))


def quietly(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the project and keep its output."""
    return subprocess.run(
        ansible(*arguments), cwd=HOUSE, env=environment(), capture_output=True, text=True, check=False
    )


def wait_until_seen() -> None:
    """Until Prometheus has seen more than 5 % of errors for the plan's 15 minutes (here: seconds), and some more."""
    rate = 'sum(rate(http_requests_total{code=~"5.."}[5s])) / sum(rate(http_requests_total[5s]))'
    query = urllib.parse.urlencode({"query": f"count_over_time(({rate} > 0.05)[20s:1s])"})
    limit, count = time.monotonic() + 120, 0
    while time.monotonic() < limit:
        try:
            found = get(f"{PROMETHEUS}/api/v1/query?{query}")["data"]["result"]
        except (OSError, ValueError, KeyError):
            found = []
        count = int(float(found[0]["value"][1])) if found else 0
        if count >= 19:
            return
        time.sleep(1)
    raise Failed(
        f"Prometheus ({PROMETHEUS}) has seen {count} seconds with more than 5 % of errors within 2 minutes; "
        "expected 19, for the bad release fails one request in eight"
    )


class Humans(threading.Thread):
    """Reads the record, as a person reads mails, and answers what is asked: each answer is a process of its own."""

    def __init__(self, after: int) -> None:
        super().__init__(daemon=True)
        self.after = after
        self.over = threading.Event()
        self.failures: list[str] = []

    def run(self) -> None:
        answered: set[tuple[int, str]] = set()
        while not self.over.wait(0.5):
            for entry in entries_after(self.after):
                for role in entry.body.get("roles", []) if entry.kind == "asked" else []:
                    if (entry.seq, role) not in answered:
                        answered.add((entry.seq, role))
                        item = entry.body.get("item", "")
                        threading.Thread(target=self.answer, args=(role, item), daemon=True).start()

    def answer(self, role: str, item: str) -> None:
        person = PEOPLE[role]
        answer, reason = ("sign-off", person.signs) if item else ("go", person.decides)
        extra = {"decide_role": role, "decide_answer": answer, "decide_by": person.name, "decide_reason": reason}
        if item:
            extra["decide_item"] = item
        done = quietly("playbooks/decide.yml", "-e", json.dumps(extra))
        if done.returncode:
            self.failures.append(done.stdout + done.stderr)


def entries_after(seq: int) -> list[Entry]:
    """What stands in the record after an entry's number."""
    place = STATE / PRODUCT / "record.sqlite"
    if not place.exists():
        return []
    with Record(str(place), PRODUCT) as record:
        return [entry for entry in record.entries() if entry.seq > seq]


def roll_back() -> int:
    """The same command that an operator types, its output shown as it comes."""
    command = ansible("rollback.yml")
    say("$ " + " ".join(["ansible-playbook", *command[1:]]))
    return subprocess.run(command, cwd=HOUSE, env=environment(), check=False).returncode


def enough_traffic() -> dict[str, Any]:
    """The customers' account, once enough of them have come.

    :raises Failed: they have not within two minutes.
    """
    limit = time.monotonic() + 120
    while (stats := get(f"{TRAFFIC}/stats"))["answered"] < ENOUGH_REQUESTS:
        if time.monotonic() > limit or not stats["running"]:
            raise Failed(f"{stats['answered']} requests answered; expected {ENOUGH_REQUESTS}. See {TRAFFIC}/stats")
        time.sleep(1)
    return stats


def account(entries: list[Entry], outcome: dict[str, Any]) -> list[str]:
    """What happened, from the record: what was wrong, who decided, each step and its time, and how it ended where that
    was not well."""
    lines: list[tuple[str, str]] = []
    decided_at = None
    for entry in entries:
        if entry.kind == "criteria":
            for verdict in entry.body["criteria"]:
                if verdict["verdict"] != "safe":
                    lines.append(("wrong", f"{verdict['verdict']}: {verdict['says']}: {verdict['reason']}"))
        elif entry.kind == "decided":
            decided_at = parse_time(entry.at)
        elif entry.kind in ("decision", "sign-off"):
            body = entry.body
            word = WORDS.get(body["answer"], body["answer"])
            lines.append(("decided", f"{body['by']} ({body['role']}): {word}: {body['reason']}"))
        elif entry.kind == "step-done":
            said = "; ".join(dict.fromkeys(entry.body.get("says", {}).values()))
            took = outcome.get("steps", {}).get(entry.body["step"], {}).get("seconds") or 0
            lines.append(("step", f"{entry.body['step']:17} {format_duration(took):>6}  {said}"))
            if entry.body["step"] == "maintenance-page" and decided_at:
                up = (parse_time(entry.at) - decided_at).total_seconds()
                lines.append(("step", f"{'':24}  up and read back {format_duration(up)} after the decision"))
        elif entry.kind == "step-failed":
            said = "; ".join(dict.fromkeys(entry.body.get("failures", {}).values()))
            lines.append(("step", f"{entry.body['step']:17} failed  {said}"))
    if outcome["outcome"] != "rolled-back":
        lines.append(("outcome", f"{outcome['outcome']}: {outcome.get('reason') or 'it was not written down'}"))
    if "closed" in outcome:
        opened, closed = parse_time(outcome["opened"]), parse_time(outcome["closed"])
        watch = ", with the watch" if outcome["outcome"] == "rolled-back" else ""
        lines.append(("in all", format_duration((closed - opened).total_seconds()) + watch))
    return table(lines)


def read_outcome() -> dict[str, Any]:
    """What outcome.json says."""
    path = STATE / PRODUCT / "outcome.json"
    if not path.exists():
        return {"outcome": "failed", "reason": f"{path} is not there"}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def tell_account(entries: list[Entry], outcome: dict[str, Any]) -> None:
    print("\nWhat happened", *account(entries, outcome), sep="\n", flush=True)


def require_success(code: int, entries: list[Entry], failures: list[str]) -> None:
    """:raises Failed: the rollback did not end well; its account is told before."""
    if code:
        tell_account(entries, read_outcome())
        raise Failed("\n".join([f"rollback.yml ended with {code}; see above", *failures]))


def table(lines: list[tuple[str, str]]) -> list[str]:
    """Names in a first column, each said once."""
    before, out = "", []
    for name, text in lines:
        out.append(f"  {'' if name == before else name:9} {text}")
        before = name
    return out


def proofs(stats: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """What must be true at the end: name, what was found, whether it is right. Looked up on the systems themselves."""
    golive = json.loads((STATE / "sandbox/golive.json").read_text(encoding="utf-8"))
    versions = {get(f"{entrance}/version")["version"] for entrance in (WEB, API) for _ in range(4)}
    try:
        body = get(f"{WEB}/documents/{golive['document']}")["body"]
    except urllib.error.HTTPError as error:
        body = f"HTTP {error.code}"
    chain = quietly("playbooks/record.yml", "-e", "verify=true")
    said = [line for line in chain.stdout.splitlines() if line.startswith("balik: ")]
    by_status = ", ".join(f"{status}: {count:,}" for status, count in stats["by_status"].items())
    done = stats["sent"] - stats["in_flight"]
    return [
        (
            "requests",
            f"{stats['dropped']} dropped of {done:,} ({by_status}); the longest took {stats['longest_seconds']} s",
            stats["dropped"] == 0,
        ),
        ("version", f"{', '.join(sorted(versions))} at both entrances; the page is off", versions == {"1.9.4"}),
        (
            "document",
            f"no. {golive['document']}, saved before go-live, reads {body!r}",
            body == golive["body"],
        ),
        ("record", said[-1].removeprefix("balik: ") if said else chain.stdout[-300:], chain.returncode == 0),
    ]


def main() -> int:
    began = time.monotonic()
    say("building Lawyers Hub's production on this machine")
    # What was written about another sandbox says nothing about this one.
    shutil.rmtree(STATE / PRODUCT, ignore_errors=True)
    subprocess.run([HOUSE / "tools/demo-down", "containers"], check=True)
    play("create", "molecule/lawyers-hub/create.yml")
    play("converge", "molecule/lawyers-hub/converge.yml")
    say(f"2.0.0 is live at {WEB}, with customers on it; the monitoring sees it fail for 15 s (the plan: 15 min)")
    wait_until_seen()

    before = entries_after(0)
    humans = Humans(before[-1].seq if before else 0)
    humans.start()
    code = roll_back()
    humans.over.set()
    entries = entries_after(humans.after)
    require_success(code, entries, humans.failures)
    outcome = read_outcome()
    stats = enough_traffic()

    say("the same command again, on the system that is well now")
    again = roll_back()
    second = read_outcome()
    stats = get(f"{TRAFFIC}/stop", "POST")

    found = proofs(stats)
    nothing_to_do = again == 0 and second["outcome"] == "nothing-to-do"
    found.append(("again", f"{second['outcome']}: {second['reason']}", nothing_to_do))
    tell_account(entries, outcome)
    print(
        "\nWhat is true now",
        *(f"  {name:9} {'' if right else 'WRONG: '}{text}" for name, text, right in found),
        sep="\n",
    )
    print(f"  report    {outcome['report']}")
    print(f"\n  {WEB} and {API} stay up; `make demo-down` removes all of it.")
    print("  Its customers are gone, and without them the criteria are unknown: before you type the command yourself,")
    print("  `docker restart balik-lh-traffic`, and give the monitoring half a minute.")
    print(f"  The demo took {format_duration(time.monotonic() - began)}.")
    return 0 if all(right for _, _, right in found) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        print(f"demo: {failure}", file=sys.stderr)
        print("demo: what was built stays up for you to look at; `make demo-down` removes it.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("demo: stopped. `make demo` begins anew, `make demo-down` removes what is there.", file=sys.stderr)
        sys.exit(130)
