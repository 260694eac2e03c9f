"""The rollback: killed when the images are to go back, with the autoscalers frozen, and run again.

The people of the plan answer from processes of their own. When it is over the same command must find nothing to do.
Tells what is true then, and ends with 0 if all of it is as it should be; what rollback.yml printed stands in
``.balik-kubernetes/*.log``.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

os.environ["BALIK_SANDBOX"] = "kubernetes"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integration.rollback_runs import killed_when, run_to_the_end, started
from tools import demo

KILLED = "image-revert"


def main() -> None:
    demo.wait_until_seen()
    people = demo.Humans(0)
    people.start()
    killed_when(partial(started, KILLED), demo.STATE / "killed.log")
    print(f"  killed    when {KILLED} had begun")
    log = demo.STATE / "rollback.log"
    outcome = run_to_the_end(log)
    people.over.set()
    print(*demo.account(demo.entries_after(0), outcome), sep="\n")
    if outcome["outcome"] != "rolled-back":
        end = log.read_text(encoding="utf-8").splitlines()[-40:]
        sys.exit("\n".join([*end, *people.failures]))
    again = run_to_the_end(demo.STATE / "again.log")
    found = demo.proofs(demo.get(f"{demo.TRAFFIC}/stop", "POST"))
    found.append(("again", f"{again['outcome']}: {again['reason']}", again["outcome"] == "nothing-to-do"))
    print(*(f"  {name:9} {'' if right else 'WRONG: '}{text}" for name, text, right in found), sep="\n")
    sys.exit(not all(right for _, _, right in found))


if __name__ == "__main__":
    main()
