"""A table's rows have one sum in whatever order they come, and another when anything about them differs."""

from __future__ import annotations

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database.rows import RowSum
from hypothesis import given
from hypothesis import strategies as st

ROW = st.binary(max_size=20).map(lambda row: row.replace(b"\n", b"") + b"\n")


def sum_of(rows: list[bytes]) -> str:
    found = RowSum()
    found.add(b"".join(rows))
    return found.text()


@given(st.data(), st.lists(ROW))
def test_the_order_makes_no_difference(data: st.DataObject, rows: list[bytes]) -> None:
    assert sum_of(data.draw(st.permutations(rows))) == sum_of(rows)


@given(st.lists(ROW, min_size=1), st.lists(st.integers(0, 400), max_size=8))
def test_it_is_the_same_in_pieces_cut_anywhere(rows: list[bytes], cuts: list[int]) -> None:
    text, found = b"".join(rows), RowSum()
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in zip(at, at[1:]):
        found.feed(text[start:end])
    assert found.text() == sum_of(rows)


@pytest.mark.parametrize(
    "rows",
    [
        [b"a\n", b"b\n", b"a\n", b"c\n"],
        [b"a\n", b"b\n"],
        [b"b\n", b"b\n", b"a\n"],
        [b"a\n", b"b\n", b"a\n", b"\n"],
        [b"a\n", b"a\n", b"b \n"],
    ],
    ids=["one more", "one less", "another one twice", "an empty one more", "another letter"],
)
def test_a_difference_is_seen(rows: list[bytes]) -> None:
    assert sum_of(rows) != sum_of([b"a\n", b"b\n", b"a\n"])
