"""Names of tables as people write them, how definitions differ, and the SQL from one to the other."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database.definition import (
    Table,
    after_rows,
    before_rows,
    differences,
    table,
    unchangeable,
)
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(NAMES, NAMES)
def test_a_name_that_is_said_is_read_as_the_same(schema, name):
    assert table(Table(schema, name).said) == Table(schema, name)


@pytest.mark.parametrize("text", ["", "x", "a.b.c", '"a.b', "a.", ".b", 'a"b".c', '"a"b.c'])
def test_what_is_no_name_is_refused(text):
    with pytest.raises(BalikError, match=r"db_restore_tables: found .* expected a schema and a name"):
        table(text)


def column(name: str, **more: Any) -> dict[str, Any]:
    nothing = {"default": None, "identity": "", "generated": "", "collation": None, "comment": None}
    return {"name": name, "type": "integer", "not_null": False, **nothing, **more}


def structure(*columns: dict[str, Any], **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {kind: {} for kind in ("constraints", "indexes", "triggers", "rules", "policies")}
    return {"columns": list(columns), **empty, "row_security": [False, False], **more}


OLD = structure(column("id"), column("points"), indexes={"p": "CREATE INDEX p ON public.t USING btree (points)"})
NEW = structure(column("id"), column("points"), column("streak", default="7"), constraints={"c": "CHECK (streak > 0)"})
OF = Table("public", "t")


def test_what_a_release_changed_is_named_and_taken_back():
    assert differences(NEW, OLD) == ["column streak: new", "constraint c: new", "index p: missing"]
    assert unchangeable(NEW, OLD) == []
    assert before_rows(OF, NEW, OLD) == [
        'ALTER TABLE "public"."t" DROP CONSTRAINT "c"',
        'ALTER TABLE "public"."t" DROP COLUMN "streak"',
    ]
    assert after_rows(OF, NEW, OLD) == ["CREATE INDEX p ON public.t USING btree (points)"]


def test_and_brought_again():
    assert before_rows(OF, OLD, NEW) == [
        'DROP INDEX "public"."p"',
        'ALTER TABLE "public"."t" ADD COLUMN "streak" integer DEFAULT 7',
    ]
    assert after_rows(OF, OLD, NEW) == ['ALTER TABLE "public"."t" ADD CONSTRAINT "c" CHECK (streak > 0)']


@pytest.mark.parametrize(
    ("found", "wanted", "reason"),
    [
        (structure(column("id", type="bigint")), structure(column("id")), "column id: another"),
        (structure(column("b")), structure(column("a"), column("b")), "stood before others"),
        (structure(column("b"), column("a")), structure(column("a"), column("b")), "in another order"),
        (structure(policies={"p": ["*"]}), structure(), "policy p: new"),
        (structure(column("n", default="nextval('s')")), structure(), "with a sequence of its own"),
    ],
)
def test_what_cannot_be_taken_back_is_named(found, wanted, reason):
    assert reason in ", ".join(unchangeable(found, wanted))


def test_a_comment_is_no_difference():
    assert differences(structure(column("id", comment="x")), structure(column("id"))) == []
