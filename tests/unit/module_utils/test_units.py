"""Durations and times, as plans write them."""

from __future__ import annotations

import contextlib
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.units import (
    format_duration,
    iso,
    label_terms,
    parse_duration,
    parse_time,
)
from hypothesis import given
from hypothesis import strategies as st

WIB = timezone(timedelta(hours=7))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("15m", 900),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("500ms", 0.5),
        ("2 d", 172800),
        ("1w", 604800),
        ("1.5h", 5400),
        ("90", 90),
        (90, 90),
        (0, 0),
        (0.25, 0.25),
        (" 30s ", 30),
    ],
)
def test_a_duration(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        None,
        "",
        " ",
        "soon",
        "٣m",
        "15 minutes",
        "-5m",
        -1,
        True,
        False,
        [],
        {},
        "5mm",
        "m",
        "1h-30m",
        "1e3s",
        float("nan"),
        float("inf"),
        10**400,
        "9" * 400 + "d",
        "101 years",
        10**12,
    ],
)
def test_what_is_no_duration_is_refused_with_its_key(written: object) -> None:
    with pytest.raises(BalikError) as refused:
        parse_duration(written, "rollback_decision.wait")
    assert refused.value.what == "rollback_decision.wait"
    assert "15m" in refused.value.expected


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans(), st.binary()))
def test_a_duration_is_read_or_refused_and_nothing_else(written: Any) -> None:
    with contextlib.suppress(BalikError):
        assert 0 <= parse_duration(written) < float("inf")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0ms"),
        (0.0042, "4ms"),
        (0.9996, "1s"),
        (1, "1s"),
        (1.25, "1.2s"),
        (9.96, "10s"),
        (59.6, "1m"),
        (93.4, "1m33s"),
        (3600, "1h"),
        (90061, "1d1h1m1s"),
    ],
)
def test_a_duration_as_it_is_said(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@given(st.integers(min_value=10, max_value=10**8))
def test_what_is_said_is_read_as_the_same(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    "written",
    [
        "2026-01-10T20:00:00+07:00",
        "2026-01-10 20:00:00+07:00",
        "2026-01-10T13:00:00Z",
        datetime(2026, 1, 10, 20, tzinfo=WIB),
        datetime(2026, 1, 10, 13, tzinfo=timezone.utc),
    ],
)
def test_a_time(written: object) -> None:
    assert parse_time(written) == datetime(2026, 1, 10, 13, tzinfo=timezone.utc)
    assert parse_time(written).tzinfo is timezone.utc


@pytest.mark.parametrize("written", ["2026-01-10T20:00:00", datetime(2026, 1, 10, 20)])
def test_a_time_without_a_zone_could_be_any_hour(written: object) -> None:
    with pytest.raises(BalikError, match="no time zone"):
        parse_time(written, "rollback_release.launched")


@pytest.mark.parametrize(
    "written",
    [None, "", "yesterday", 0, True, [], date(2026, 1, 10), "0001-01-01T00:00:00+07:00", "9999-12-31T23:59:59-07:00"],
)
def test_what_is_no_time_is_refused_with_its_key(written: object) -> None:
    with pytest.raises(BalikError) as refused:
        parse_time(written, "rollback_release.launched")
    assert refused.value.what == "rollback_release.launched"


@given(st.datetimes(timezones=st.just(timezone.utc)), st.datetimes(timezones=st.just(timezone.utc)))
def test_iso_sorts_as_time_does_and_comes_back(one: datetime, other: datetime) -> None:
    assert parse_time(iso(one)) == one
    assert (iso(one) < iso(other)) == (one < other)


def test_only_nothing_takes_any_value_of_a_label() -> None:
    labels = {"a": "", "b": None, "c": False, "d": True, "e": 0, "f": 1.5, "g": "web"}
    assert label_terms(labels) == ["a", "b", "c=false", "d=true", "e=0", "f=1.5", "g=web"]
