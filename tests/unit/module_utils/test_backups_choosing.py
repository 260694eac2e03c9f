"""Which backup is meant: never one that may have been taken after go-live, and each other one with its reason."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.backups.choosing import Candidate, choose, fill, zone_of
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from hypothesis import given
from hypothesis import strategies as st

PATTERN = "pre-golive-snapshot-YYYYMMDD.sql"
LAUNCH = "2026-01-10T20:00:00+07:00"  # 13:00 UTC


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def name(day: str, ending: str = ".sql") -> str:
    return f"pre-golive-snapshot-{day}{ending}"


def chosen(*files: Candidate, launch: str = LAUNCH, pattern: str = PATTERN, **manifests: str) -> Any:
    taken = {name(day): {"taken": moment} for day, moment in manifests.items()}
    return choose(pattern, files, launch, lambda each: taken.get(each.name))


def test_the_newest_of_those_before_go_live_and_why_the_others_are_not() -> None:
    files = [Candidate(name(day), 1, at(f"{day[:4]}-{day[4:6]}-{day[6:]}T12:00Z")) for day in
             ("20260107", "20260108", "20260111", "20260112")]  # fmt: skip
    found = chosen(*files, Candidate("other.sql"), Candidate(name("20260108") + ".part-3"))
    assert (found.candidate.name, found.by) == (name("20260108"), "name")
    assert found.refused == {
        name("20260107"): "it is older",
        name("20260111"): "its day may reach beyond go-live; it has no manifest and is written 2026-01-11 12:00 UTC,"
        " after go-live (only copied then? name it)",
        name("20260112"): "named after go-live",
    }
    assert "pre-golive-snapshot-20260108.sql, taken 2026-01-08 12:00 UTC by its name; not pre-" in found.says


@pytest.mark.parametrize(
    ("day", "written", "by"),
    [
        ("20260110", "2026-01-10T12:59:00+00:00", "file"),  # the day itself, an hour before
        ("20260110", "2026-01-10T13:00:00+00:00", ""),  # at go-live, after it
        ("20260110", "2026-01-10T14:00:00+00:00", ""),
        ("20260111", "2026-01-10T12:00:00+00:00", "file"),  # tomorrow already, at UTC+14
        ("20260110", "", ""),
        ("20260109", "2026-01-20T00:00:00+00:00", "name"),  # over everywhere before: copied since, no matter
    ],
)
def test_a_date_alone_is_judged_by_every_zone_on_earth(day: str, written: str, by: str) -> None:
    file = Candidate(name(day), 1, at(written) if written else None)
    if by:
        assert chosen(file).by == by
    else:
        with pytest.raises(BalikError, match="its day may reach beyond go-live"):
            chosen(file)


def test_the_day_before_an_early_go_live_may_reach_beyond_it() -> None:
    """Go-live at 03:00 in Jakarta: in a name of UTC's date, yesterday goes on for four hours."""
    files = [Candidate(name("20260109"), 1, at(f"2026-01-09T{hour}:00+00:00")) for hour in (19, 21)]
    assert chosen(files[0], launch="2026-01-10T03:00:00+07:00").by == "file"
    with pytest.raises(BalikError, match="its day may reach beyond go-live"):
        chosen(files[1], launch="2026-01-10T03:00:00+07:00")


def test_a_manifest_decides_against_name_and_file() -> None:
    late = Candidate(name("20260101"), 1, at("2026-01-01T00:00Z"))
    early = Candidate(name("20260301"), 1, at("2026-03-01T00:00Z"))
    found = chosen(late, early, **{"20260101": "2026-01-10T20:00:01+07:00", "20260301": "2026-01-10T19:59:59+07:00"})
    assert (found.candidate, found.by) == (early, "manifest")
    assert found.refused == {late.name: "taken 2026-01-10T20:00:01+07:00 by its manifest, after go-live"}


def test_a_time_in_the_name_is_in_go_lives_zone() -> None:
    names = ["db-20260110-1959.dump", "db-20260110-2001.dump"]
    found = choose("db-YYYYMMDD-HHMM.dump", [Candidate(each) for each in names], LAUNCH, lambda each: None)
    assert found.candidate.name == names[0]
    assert found.refused == {names[1]: "named after go-live"}


def test_a_time_in_the_name_that_the_file_itself_contradicts_is_not_believed() -> None:
    """Go-live at 13:00 UTC; a cron on a server in UTC names by UTC: 19:30 is after it, and 12:30 only in Jakarta."""
    late = Candidate("s-20260110-1930.sql", 1, at("2026-01-10T19:31:00+00:00"))
    copied = Candidate("s-20260109-1200.sql", 1, at("2026-01-10T19:31:00+00:00"))
    early = Candidate("s-20260108-1200.sql", 1, at("2026-01-08T05:01:00+00:00"))
    pattern = "s-YYYYMMDD-HHMM.sql"
    with pytest.raises(BalikError, match=r"1930.sql \(written 2026-01-10 19:31 UTC, after go-live, .*name it"):
        choose(pattern, [late], LAUNCH, lambda each: None)
    found = choose(pattern, [late, copied, early], LAUNCH, lambda each: None)
    assert found.candidate == copied, "yesterday's is of before go-live in every zone, whenever it was copied"
    soon = Candidate("s-20260110-1930.sql", 1, at("2026-01-10T12:31:00+00:00"))
    assert choose(pattern, [soon, early], LAUNCH, lambda each: None).candidate == soon, "the file's time agrees"


def test_two_of_one_day_without_manifests_are_not_guessed_between() -> None:
    files = [Candidate(name("20260101", ending), 1, at("2026-01-01T00:00Z")) for ending in (".sql", ".sql.gz")]
    with pytest.raises(BalikError, match=r"2 backups of the same moment: .*\.sql, .*\.sql\.gz"):
        chosen(*files)
    assert chosen(*files, **{"20260101": "2026-01-02T00:00:00Z"}).candidate.name == name("20260101"), (
        "one has a manifest"
    )


def test_none_says_what_is_there() -> None:
    with pytest.raises(
        BalikError, match=r"no backup of this name; there is a\.sql, b\.sql; expected one that was taken"
    ):
        chosen(Candidate("b.sql"), Candidate("a.sql"))
    with pytest.raises(BalikError, match="holds no date of the calendar"):
        chosen(Candidate(name("20261399")))
    with pytest.raises(BalikError, match="db_restore_golive: not set"):
        chosen(Candidate(name("20260101")), launch="")


@given(
    days=st.lists(st.integers(-4, 4), min_size=1, max_size=6, unique=True),
    hours=st.integers(-12, 14),  # the zones that there are
    shift=st.integers(-3000, 3000),
)
def test_never_one_that_was_taken_after_go_live(days: list[int], hours: int, shift: int) -> None:
    """Whatever zone the names are of: files whose time is that of the taking."""
    launch = at("2026-01-10T13:00:00+00:00")
    zone = timezone(timedelta(hours=hours))
    files = {}
    for day in days:
        taken = launch + timedelta(days=day, minutes=shift)
        file = Candidate(fill(PATTERN, taken.astimezone(zone)), 1, taken)
        files[file.name] = file
    try:
        found = choose(PATTERN, files.values(), LAUNCH, lambda each: None)
    except BalikError:
        assert all(each.written >= launch for each in files.values() if each.written)
    else:
        good = [each.written for each in files.values() if each.written and each.written < launch]
        assert found.candidate.written == max(good)


def test_a_name_is_filled_with_the_day_in_go_lives_zone() -> None:
    now = at("2026-01-10T18:30:00+00:00")
    assert fill(PATTERN, now.astimezone(zone_of(LAUNCH))) == name("20260111")
    assert fill(PATTERN, now.astimezone(zone_of(""))) == name("20260110")
    assert fill("a-YYYY-MM-DD-HHMMSS.sql", now) == "a-2026-01-10-183000.sql"
