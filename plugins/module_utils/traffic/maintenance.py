"""Putting the page up and taking it down, and proving before that it can be done."""

from __future__ import annotations

import grp
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..concurrently import Late, as_done
from ..errors import BalikError, Unreachable
from ..files import write_whole
from .balancer import Balancer, File, State, read_text
from .door import Answer, Door
from .page import BYPASS, COOKIE, MARKER, PREVIEW, Page, PageIsOn

# After a reload of nginx the old workers accept connections for another 100 ms.
_STEADY = 0.5
# One request gives up earlier by itself, unless each byte of its answer comes late.
_LIMIT = 5.0
# How many times the limit of a switch the last look may take: visitors have the application by then, and a moment
# without an answer is no reason to fail.
_PATIENCE = 3
NO_ANSWER = "no answer"

Result = dict[str, Any]
"""``changed``, ``says``, and where they apply ``before``, ``evidence``, ``missing``, ``diff``."""


@dataclass(frozen=True)
class Maintenance:
    """The page of one load balancer.

    :param host: what the load balancer is called in the plan.
    :param bypass: the secret of bypass and preview.
    :param health: paths that the page leaves alone.
    :param within: seconds that the load balancer has to show the effect of a switch or a reload.
    :param dry: say what would be done.
    """

    host: str
    balancer: Balancer
    door: Door
    bypass: str
    health: tuple[str, ...] = ()
    within: float = 5.0
    dry: bool = False

    def prepare(self, page: Page, group: str = "") -> Result:
        """Writes the switch and the page, validates, and reloads only where the running process needs it.

        A load balancer that refuses its configuration finds the old files again.
        """
        wanted = self.balancer.files(page, self.bypass)
        old = {file.path: read_text(file.path) for file in wanted}
        stale = [file for file in wanted if old[file.path] != file.content]
        result: Result = {"diff": [_diff(old[file.path], file) for file in stale]}
        if self.dry:
            what = f"would write {', '.join(str(file.path) for file in stale)}" if stale else "all files are there"
            return {**result, "changed": bool(stale), "says": self._says(what)}
        self._write(stale, old, _group(group))
        missing = self.balancer.missing()
        if missing:
            says = f"not ready: {'; '.join(missing)}"
            return {**result, "changed": bool(stale), "missing": missing, "says": self._says(says)}
        reload = bool(stale) or not self._previews(page)
        if reload:
            self.balancer.reload()
            last, good, _ = self.door.wait(
                lambda answer: answer.revision == page.revision,
                self.within + _STEADY,
                {PREVIEW: self.bypass},
                steady=_STEADY,
            )
            if not good:
                raise self._not_previewed(last)
        says = f"the page is ready behind the switch{', after a reload' if reload else ''}"
        return {**result, "changed": reload, "missing": [], "says": self._says(says)}

    def check(self, page: Page) -> Result:
        """Proves, without a visitor noticing, that the switch would bring up this page; ``before`` is its position."""
        state = self.balancer.read()
        missing = self.balancer.missing()
        if missing:
            raise BalikError(
                f"{self.host}: {self.balancer.title}",
                "; ".join(missing),
                do="Run maintenance-page's `prepare` before that, where it has not been run, and once more after it.",
            )
        last, good, seconds = self.door.wait(lambda a: a.revision is not None, self.within, {PREVIEW: self.bypass})
        if not isinstance(last, Answer) or not good:
            raise self._not_previewed(last)
        self._must_be_page(last)
        if last.revision != page.revision:
            raise BalikError(
                self.door.url,
                f"the page that {self.balancer.title} has ready is revision {last.revision}",
                f"the plan's, {page.revision}",
                "Run maintenance-page's `prepare`.",
            )
        if state.on:
            self._passing({"bypass by header": ({BYPASS: self.bypass}, "")})
        word = _word(state.on)
        return {
            "changed": False,
            "before": {"page": word},
            "evidence": {"page": word, "revision": page.revision, "preview_ms": _ms(seconds)},
            "says": self._says(f"{self.balancer.title} is ready to serve the page, which is {word}"),
        }

    def on(self) -> Result:
        """Puts the page up, and waits until a visitor gets it."""
        state = self.balancer.read()
        result = self._change(state, True)
        if self.dry:
            return {**result, "says": self._says(f"the page {'would go on' if result['changed'] else 'is on'}")}
        start = time.monotonic()
        if result["changed"]:
            self.balancer.switch(True)
        last, good, _ = self.door.wait(lambda answer: answer.is_page, self.within)
        seconds = time.monotonic() - start
        if not good:
            raise BalikError(
                self.door.url,
                f"{_last(last)}, {seconds:.1f} s after {self.balancer.title}'s switch was set to on",
                f"503 with {MARKER}",
                f"The switch stays on. {self._look(last)}",
            )
        evidence = {"page": "on", "url": self.door.url, "status": 503, "served_after_ms": _ms(seconds)}
        says = f"{self.balancer.title} serves the page, 503, seen {_ms(seconds)} ms after the switch"
        return {**result, "evidence": evidence, "says": self._says(says)}

    def off(self, app_must_answer: bool) -> Result:
        """Takes the page down, and waits until a visitor gets past it.

        :param app_must_answer: the application must be seen behind the page first, or the page stays.
        """
        state = self.balancer.read()
        if app_must_answer:
            self._must_have_app(state)
        result = self._change(state, False)
        if self.dry:
            return {**result, "says": self._says(f"the page {'would go off' if result['changed'] else 'is off'}")}
        start = time.monotonic()
        if result["changed"]:
            self.balancer.switch(False)
        last, good, _ = self.door.wait(
            lambda answer: answer.is_app if app_must_answer else answer.revision is None, self.within
        )
        seconds = time.monotonic() - start
        if not good:
            raise BalikError(
                self.door.url,
                f"{_last(last)}, {seconds:.1f} s after {self.balancer.title}'s switch was set to off",
                f"an answer below 500 without {MARKER}" if app_must_answer else f"one without {MARKER}",
                self._look(last),
            )
        evidence = {"page": "off", "url": self.door.url, "status": _status(last), "passed_after_ms": _ms(seconds)}
        says = f"{self.balancer.title} lets traffic pass, {_status(last)}, seen {_ms(seconds)} ms after the switch"
        return {**result, "evidence": evidence, "says": self._says(says)}

    def verify_on(self) -> Result:
        """Reads again: the page with its headers, and that bypass and health still reach the application.

        What the application says there is written down and not judged: it is being rolled back.
        """
        if self.dry:
            return {"changed": False, "says": self._says("the page is not verified in check mode")}
        self._must_stand(True)
        page = self.door.ask()
        self._must_be_page(page)
        requests: dict[str, tuple[Mapping[str, str], str]] = {path: ({}, path) for path in self.health}
        requests["bypass by header"] = ({BYPASS: self.bypass}, "")
        requests["bypass by cookie"] = ({"Cookie": f"{COOKIE}={self.bypass}"}, "")
        passing = self._passing(requests)
        retry = page.headers["retry-after"]
        says = f"the page is on: 503, Retry-After {retry}, no-store; health and bypass get through"
        if silent := [what for what, status in passing.items() if status == NO_ANSWER]:
            says += f" ({', '.join(silent)}: the application gives no answer)"
        return {
            "changed": False,
            "evidence": {"page": "on", "status": 503, "retry_after": retry, "passing": passing},
            "says": self._says(says),
        }

    def see_on(self) -> Result:
        """Reads only that visitors still have the page: what gets past it may hang while the application is changed."""
        if self.dry:
            return {"changed": False, "says": self._says("the page is not looked at in check mode")}
        self._must_stand(True)
        last, good, _ = self.door.wait(lambda answer: answer.is_page, self.within)
        if not good:
            raise BalikError(self.door.url, _last(last), f"503 with {MARKER}", self._look(last))
        return {"changed": False, "says": self._says("the page is still on")}

    def verify_off(self) -> Result:
        """Reads again: the switch is off and the application answers below 500, at once or soon.

        :raises PageIsOn: visitors get the page.
        """
        if self.dry:
            return {"changed": False, "says": self._says("the traffic is not verified in check mode")}
        limit = self.within * _PATIENCE
        # One that does not answer cannot say where its switch stands either.
        last, good, _ = self.door.wait(lambda _: True, limit)
        if good:
            self._must_stand(False)
            last, good, _ = self.door.wait(lambda answer: answer.is_app, limit)
        if not good:
            kind = PageIsOn if isinstance(last, Answer) and last.is_page else BalikError
            raise kind(
                self.door.url,
                f"{_last(last)}, asked for {limit:g} s",
                f"an answer below 500 without {MARKER}",
                self._look(last),
            )
        return {
            "changed": False,
            "evidence": {"page": "off", "status": _status(last)},
            "says": self._says(f"the page is off and the application answers {_status(last)}"),
        }

    def _says(self, sentence: str) -> str:
        return f"{self.host}: {sentence}"

    def _change(self, state: State, on: bool) -> Result:
        changed = not state.is_fully(on)
        after = f"page: {_word(on)}\n"
        before = f"page: {_word(state.on)}{'' if state.on is state.kept else ', not after a restart'}\n"
        return {"changed": changed, "diff": {"before": before if changed else after, "after": after}}

    def _must_stand(self, on: bool) -> None:
        state = self.balancer.read()
        if not state.is_fully(on):
            kind = PageIsOn if state.on else BalikError
            raise kind(
                f"{self.host}: {self.balancer.title}'s switch",
                f"{_word(state.on)}, and {_word(state.kept)} after a restart",
                _word(on),
            )

    def _must_have_app(self, state: State) -> None:
        last, good, _ = self.door.wait(lambda answer: answer.is_app, self.within, {BYPASS: self.bypass})
        if good:
            return
        # A page that is off already may be put up again by whoever asked.
        left = "The page is left on. " if state.on else ""
        raise BalikError(
            f"{self.door.url} behind the page",
            _last(last),
            f"the application, below 500 and without {MARKER}",
            f"{left}Bring the application up first."
            if not isinstance(last, Answer) or last.revision is None
            else f"{left}Run maintenance-page's `prepare`: the load balancer does not know the plan's bypass.",
        )

    def _must_be_page(self, answer: Answer) -> None:
        if not answer.is_page:
            raise BalikError(self.door.url, str(answer), f"503 with {MARKER}", self._look(answer))
        for name, right, expected in (
            ("Retry-After", str.isdigit, "a number of seconds"),
            ("Cache-Control", lambda value: "no-store" in value, "no-store, or caches go on serving the page"),
        ):
            value = answer.headers.get(name.lower(), "")
            if not right(value):
                raise BalikError(f"{self.door.url}: header {name}", f"found {value!r}", expected)

    def _passing(self, requests: Mapping[str, tuple[Mapping[str, str], str]]) -> dict[str, int | str]:
        """What comes past the page to each request (headers, path): the application's status, or ``NO_ANSWER`` where
        it hangs, which may be why it is rolled back. All are asked at once: that costs one such wait, not several.

        :raises BalikError: the page comes.
        """
        jobs = {what: (partial(self.door.ask, *request), _LIMIT) for what, request in requests.items()}
        found: dict[str, int | str] = {}
        for what, answer in as_done(jobs):
            if isinstance(answer, Answer):
                self._must_pass(what, answer)
                found[what] = answer.status
            elif isinstance(answer, (Unreachable, Late)):
                found[what] = NO_ANSWER
            else:
                raise answer
        return {what: found[what] for what in requests}

    def _must_pass(self, what: str, answer: Answer) -> None:
        if answer.revision is not None:
            raise BalikError(
                f"{self.door.url} ({what})",
                "the page is served",
                "the application",
                f"The switch in {self.balancer.title} holds another secret or other health paths than the plan: "
                "run maintenance-page's `prepare`.",
            )

    def _previews(self, page: Page) -> bool:
        try:
            return self.door.ask({PREVIEW: self.bypass}).revision == page.revision
        except Unreachable:
            return False

    def _not_previewed(self, last: Answer | Unreachable) -> BalikError:
        return BalikError(
            f"{self.door.url} with {PREVIEW}",
            _last(last),
            f"503 with {MARKER}",
            self._look(last)
            if not isinstance(last, Answer)
            else f"{self._look(last)} Was {self.balancer.title} reloaded since its configuration was changed? "
            "maintenance-page's `prepare` does so.",
        )

    def _look(self, last: Answer | Unreachable) -> str:
        if not isinstance(last, Answer):
            return last.do
        return (
            f"maintenance_page_url must reach this {self.balancer.title} itself, not a CDN or another load balancer "
            "in front of it, and a server or frontend that has the switch."
        )

    def _write(self, stale: list[File], old: dict[Path, str | None], group: int) -> None:
        try:
            for file in stale:
                _put(file, file.content, group)
        except OSError as error:
            raise BalikError(str(file.path), f"not written: {error.strerror}", do="Use `become: true`.") from error
        try:
            self.balancer.validate()
        except BalikError:
            for file in stale:
                _put(file, old[file.path], group)
            raise


def _put(file: File, content: str | None, group: int) -> None:
    if content is None:
        file.path.unlink()
    else:
        write_whole(file.path, content, 0o640 if file.secret else 0o644, group if file.secret else -1)


def _group(name: str) -> int:
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise BalikError("maintenance_page_group", f"no group {name!r} on this host", "a group") from None


def _diff(before: str | None, file: File) -> dict[str, str]:
    hidden = "(holds the bypass: not shown)\n"
    return {
        "before_header": str(file.path),
        "after_header": str(file.path),
        "before": "" if before is None else hidden if file.secret else before,
        "after": f"{hidden.rstrip()} changed\n" if file.secret else file.content,
    }


def _word(on: bool) -> str:
    return "on" if on else "off"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _last(last: Answer | Unreachable) -> str:
    return str(last) if isinstance(last, Answer) else last.found


def _status(last: Answer | Unreachable) -> int:
    return last.status if isinstance(last, Answer) else 0
