"""A feature's tables put back to a snapshot or dropped, while the rest of the database goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible_collections.balik.rollback.plugins.module_utils.database import restore, tables
from ansible_collections.balik.rollback.plugins.module_utils.database import task as database_task
from ansible_collections.balik.rollback.plugins.module_utils.database.access import Access
from ansible_collections.balik.rollback.plugins.module_utils.database.task import Task, application
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError

from tests.integration.database_restores import dump, small_disk, wait_for
from tests.servers.postgresql import Server, postgresql

DATABASE = "info pekerjaan"
RUN = "20260110T130000Z-3f9a"
RESTORED = ["public.leaderboard", 'Papan Peringkat."Skor ""№"" 1.0"', "public.badges", "public.scores"]
NEW = ["public.seasons", "public.season_top"]
FEATURE = """
CREATE EXTENSION pgcrypto; CREATE SCHEMA "Papan Peringkat"; CREATE TYPE tier AS ENUM ('emas', 'perak');
CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO users SELECT n, 'Pencari ' || n FROM generate_series(1, 500) n;
CREATE TABLE leaderboard (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id int NOT NULL REFERENCES users ON DELETE CASCADE,
  points int NOT NULL CHECK (points >= 0), tier tier, seen timestamptz DEFAULT now(),
  doubled int GENERATED ALWAYS AS (points * 2) STORED, touched int NOT NULL DEFAULT 0);
CREATE INDEX by_points ON leaderboard (points DESC) WHERE tier = 'emas';
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.touched := NEW.touched + 1; RETURN NEW; END$$;
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON leaderboard FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TRIGGER always BEFORE INSERT OR UPDATE ON leaderboard FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE leaderboard ENABLE ALWAYS TRIGGER always;
CREATE TRIGGER off BEFORE DELETE ON leaderboard FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE leaderboard DISABLE TRIGGER off;
INSERT INTO leaderboard (user_id, points, tier) SELECT n, n, 'emas' FROM generate_series(1, 300) n;
COMMENT ON TABLE leaderboard IS 'Papan ''peringkat'''; COMMENT ON COLUMN leaderboard.points IS 'Poin';
CREATE ROLE reader; GRANT SELECT ON leaderboard TO reader; GRANT UPDATE (points) ON leaderboard TO reader;
ALTER TABLE leaderboard ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON leaderboard TO reader USING (user_id > 1);
CREATE RULE deny AS ON DELETE TO leaderboard WHERE old.id < 0 DO INSTEAD NOTHING;
ALTER TABLE leaderboard REPLICA IDENTITY FULL;
CREATE VIEW top AS SELECT * FROM leaderboard ORDER BY points DESC LIMIT 10;
CREATE TABLE "Papan Peringkat"."Skor ""№"" 1.0" ("Id" serial PRIMARY KEY, "Nilai" numeric UNIQUE, note bytea);
INSERT INTO "Papan Peringkat"."Skor ""№"" 1.0" ("Nilai", note)
SELECT n / 3.0, E'\\\\x00ff' FROM generate_series(1, 50) n;
CREATE TABLE badges (id int PRIMARY KEY, label text);
INSERT INTO badges SELECT n, E'lencana\\t\\\\.\\n' || n FROM generate_series(1, 20) n;
CREATE TABLE user_badges (user_id int REFERENCES users, badge_id int REFERENCES badges ON DELETE CASCADE);
INSERT INTO user_badges SELECT n, n FROM generate_series(1, 20) n;
CREATE TABLE scores (day date, points int, PRIMARY KEY (day, points)) PARTITION BY RANGE (day);
CREATE TABLE scores_1 PARTITION OF scores FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE scores_2 PARTITION OF scores FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
INSERT INTO scores SELECT '2026-01-01'::date + n, n FROM generate_series(0, 50) n;
CREATE PUBLICATION feed FOR TABLE leaderboard, badges;
"""
RELEASE = """
UPDATE leaderboard SET points = 0, tier = NULL WHERE id < 200; DELETE FROM leaderboard WHERE id > 250;
INSERT INTO leaderboard (user_id, points) SELECT n, 9 FROM generate_series(301, 400) n;
INSERT INTO "Papan Peringkat"."Skor ""№"" 1.0" ("Nilai") SELECT -n FROM generate_series(1, 9) n;
UPDATE badges SET label = 'x'; UPDATE scores SET points = points + 1000;
CREATE TABLE seasons (id serial PRIMARY KEY, user_id int REFERENCES users, name text UNIQUE);
INSERT INTO seasons (user_id, name) SELECT n, 'musim ' || n FROM generate_series(1, 40) n;
COMMENT ON TABLE seasons IS E'baru\\n\\\\restrict abc';
GRANT SELECT ON seasons TO reader; ALTER PUBLICATION feed ADD TABLE seasons;
CREATE VIEW season_top AS SELECT name FROM seasons WHERE id < 4;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql(wal_level="logical") as running:
        running.psql("CREATE DATABASE known_good")
        running.psql(FEATURE, "known_good")
        yield running


@pytest.fixture(scope="module")
def snapshots(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    for letter, name in {"p": "s.sql", "c": "s.dump", "d": "s.dir"}.items():
        dump(server, folder / name, f"-F{letter}")
    return folder


@pytest.fixture
def live(server: Server) -> Iterator[Server]:
    server.psql(f'CREATE DATABASE "{DATABASE}" TEMPLATE known_good')
    server.psql(RELEASE, DATABASE)
    yield server
    for name in databases(server):
        server.psql(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def job(live: Server, snapshots: Path, tmp_path: Path) -> Task:
    access = Access(live.host, live.port, "postgres", application=application(RUN, DATABASE))
    return Task(
        access, DATABASE, RUN, source=str(snapshots / "s.sql"), folder=str(tmp_path / "now"), limit=60, jobs=1,
        tables=RESTORED, drop_tables=NEW, lock_limit=3,
        checks=[{"query": "SELECT count(*) FROM leaderboard", "expect": 300}],
    )  # fmt: skip


def databases(server: Server) -> list[str]:
    known = "'postgres', 'template0', 'template1', 'known_good'"
    return server.psql(f"SELECT datname FROM pg_database WHERE datname NOT IN ({known}) ORDER BY 1").splitlines()


def catalog(server: Server, database: str = DATABASE) -> str:
    """All that pg_dump knows of the database, without rows, in its order."""
    command = [str(server.bin / "pg_dump"), "--schema-only", "-d", server.dsn(database)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return "\n".join(line for line in text.splitlines() if "restrict" not in line)


def content(server: Server, database: str = DATABASE) -> dict[str, object]:
    """Each table's rows and each sequence's value, as text."""
    found = {}
    with psycopg.connect(server.dsn(database)) as connection:
        relations = connection.execute(
            "SELECT oid::regclass::text, relkind FROM pg_class WHERE relkind IN ('r', 'S') AND oid >= 16384"
            " AND relnamespace::regnamespace::text !~ '^pg_|information'"
        ).fetchall()
        for name, kind in relations:
            columns = "last_value::text || is_called" if kind == "S" else "x::text"
            row = connection.execute(
                f"SELECT md5(string_agg({columns}, ',' ORDER BY {columns})) FROM {name} x"
            ).fetchone()
            found[name] = row[0] if row else None
    return found


@contextmanager
def untouched(server: Server) -> Iterator[None]:
    before = catalog(server), content(server)
    yield
    assert (catalog(server), content(server)) == before
    assert databases(server) == [DATABASE]


@pytest.mark.parametrize("kind", ["s.sql", "s.dump", "s.dir"])
def test_tables_come_back_and_new_ones_go_and_all_can_be_undone(live, snapshots, job, kind):
    job = replace(job, source=str(snapshots / kind))
    before = catalog(live), content(live)
    looked = tables.check(job)
    assert "public.leaderboard (350 rows, 300 in it)" in looked["says"]
    assert "public.scores (51 rows, 51 in it)" in looked["says"]
    assert "would drop public.seasons, public.season_top" in looked["says"]
    assert "user_badges_badge_id_fkey from public.user_badges to public.badges" in looked["evidence"]["foreign_keys"]
    job = replace(job, saved=looked["before"])
    assert tables.restore(job, check_mode=True)["changed"]
    assert (catalog(live), content(live)) == before

    done = tables.restore(job)
    assert done["changed"]
    assert done["evidence"]["restored"]["public.leaderboard"] == 300
    known_good = content(live, "known_good")
    assert content(live) == known_good
    assert catalog(live) == catalog(live, "known_good")
    assert databases(live) == [DATABASE]
    live.psql("INSERT INTO leaderboard (user_id, points) VALUES (1, 1)", DATABASE)
    assert live.psql("SELECT max(id) FROM leaderboard", DATABASE) == "301"
    assert "written to since: public.leaderboard" in tables.verify(replace(job, checks=[]))["says"]
    assert tables.restore(job)["changed"] is False
    assert live.psql("SELECT count(*) FROM leaderboard", DATABASE) == "301", "what was written since stays"
    assert "restored already" in tables.check(job)["says"]
    assert live.psql("SELECT touched FROM leaderboard WHERE id = 301", DATABASE) == "2", "triggers are as they were"

    back = tables.undo(job)
    assert back["changed"]
    assert (catalog(live), content(live)) == before
    assert tables.undo(job)["changed"] is False
    with pytest.raises(BalikError, match="not restored by this run"):
        tables.verify(job)
    kept = Path(job.folder)
    assert {path.stat().st_mode & 0o077 for path in kept.glob("*.dump")} == {0}
    assert {path.name.removeprefix(f"info_pekerjaan-{RUN}-") for path in kept.iterdir()} == {
        "tables.dump", "tables.dump.sha256", "dropped.dump", "dropped.dump.sha256", "tables.json",
        "tables-restored.dump", "tables-restored.dump.sha256", f"info_pekerjaan-{RUN}.of",
    }  # fmt: skip


def test_a_second_undo_of_a_run_keeps_beside_what_the_first_kept(live, job):
    kept = []
    for user in (1, 2):
        tables.restore(job)
        live.psql(f"INSERT INTO leaderboard (user_id, points) VALUES ({user}, 7777)", DATABASE)
        kept += tables.undo(job)["evidence"]["kept"]
    assert [Path(path).name.rpartition("-tables")[2] for path in kept] == ["-restored.dump", "-restored-2.dump"]
    for user, path in enumerate(kept, 1):
        command = [live.bin / "pg_restore", "-f", "-", path]
        archive = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert [line.split("\t")[1] for line in archive.splitlines() if "\t7777" in line] == [str(user)]


def test_tables_that_cannot_be_compared_are_named(live, job, tmp_path):
    path = dump(live, tmp_path / "x.sql", "--inserts", "--rows-per-insert=50")
    job = replace(job, source=str(path), tables=["public.badges", "public.scores"], drop_tables=[])
    named = "NOT compared with the backup's rows: {}, since the backup has them otherwise"
    says = tables.check(job)["says"]
    assert "public.badges (20 rows, uncounted in it)" in says
    assert named.format("public.badges, public.scores") in says
    done = tables.restore(job)
    assert named.format("public.badges, public.scores_1, public.scores_2") in done["says"]
    assert done["evidence"]["tables_not_compared"] == ["public.badges", "public.scores_1", "public.scores_2"]


def test_rows_of_partitions_that_only_the_backup_has_are_counted(live, job):
    live.psql("DROP TABLE scores_2", DATABASE)
    job = replace(job, tables=["public.scores"], drop_tables=[])
    looked = tables.check(job)
    assert looked["evidence"]["rows"] == {"public.scores": (31, 51)}
    assert "partitions that only the backup has: public.scores_2" in looked["says"]
    with pytest.raises(BalikError, match='no partition of relation "scores" found for row'):
        tables.restore(job)


def test_only_dropping_needs_no_backup(live, job):
    job = replace(job, source="", tables=[])
    before = catalog(live), content(live)
    assert "would drop public.seasons" in tables.check(job)["says"]
    assert tables.restore(job)["evidence"]["dropped"] == NEW
    assert "seasons" not in catalog(live)
    assert tables.undo(job)["changed"]
    assert (catalog(live), content(live)) == before


def test_views_on_views_go_in_their_order_and_come_back(live, job):
    live.psql(
        "CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM season_top;"
        "CREATE VIEW shown AS SELECT n FROM counted; CREATE TABLE entries (season int REFERENCES seasons);"
        "ALTER TABLE seasons ADD COLUMN best int; CREATE UNIQUE INDEX ON entries (season);"
        "ALTER TABLE seasons ADD FOREIGN KEY (best) REFERENCES entries (season); CREATE VIEW entered AS TABLE entries",
        DATABASE,
    )
    new = ["public.entries", "public.seasons", "public.season_top", "public.counted", "public.entered", "public.shown"]
    job = replace(job, source="", tables=[], drop_tables=new)
    before = catalog(live), content(live)
    tables.check(job)
    assert tables.restore(job)["evidence"]["dropped"] == new
    assert catalog(live) == catalog(live, "known_good")
    tables.undo(job)
    assert (catalog(live), content(live)) == before


def test_what_publishes_some_columns_and_rows_comes_back_no_wider(live, job):
    live.psql(
        "ALTER PUBLICATION feed SET TABLE leaderboard, badges, seasons (id, user_id) WHERE (id > 0);"
        "CREATE STATISTICS of_both (ndistinct, dependencies) ON user_id, name FROM seasons;"
        "ALTER STATISTICS of_both SET STATISTICS 50; COMMENT ON STATISTICS of_both IS 'dua'",
        DATABASE,
    )
    job = replace(job, source="", tables=[])
    before = catalog(live), content(live)
    assert "WHERE ((id > 0))" in before[0]
    assert "STATISTICS" in before[0]
    tables.restore(job)
    assert "STATISTICS" not in catalog(live)
    tables.undo(job)
    assert (catalog(live), content(live)) == before


@pytest.mark.parametrize("valid", ["", "NOT VALID"])
def test_a_chain_of_tables_to_whose_last_another_refers(live, job, tmp_path, valid):
    live.psql("CREATE DATABASE chain")
    live.psql(
        "CREATE TABLE season (id int PRIMARY KEY); INSERT INTO season VALUES (1), (2);"
        "CREATE TABLE score (id int PRIMARY KEY, season int REFERENCES season);"
        "INSERT INTO score VALUES (1, 1), (2, 2);"
        "CREATE TABLE comment (score int); INSERT INTO comment VALUES (2);"
        f"ALTER TABLE comment ADD FOREIGN KEY (score) REFERENCES score {valid};"
        "CREATE VIEW best AS SELECT max(id) AS id FROM score; CREATE MATERIALIZED VIEW hall AS TABLE best",
        "chain",
    )
    then = content(live, "chain")
    source = dump(live, tmp_path / "chain.sql", database="chain")
    live.psql("INSERT INTO season VALUES (3); UPDATE score SET season = 3; INSERT INTO score VALUES (4, 1)", "chain")
    before = content(live, "chain")
    job = replace(
        job, database="chain", source=str(source), tables=["public.season", "public.score"], drop_tables=[], checks=[]
    )
    stale = "materialized views that keep their rows until REFRESH MATERIALIZED VIEW: public.hall"
    assert stale in tables.check(job)["says"]
    assert stale in tables.restore(job)["says"]
    assert content(live, "chain") == then
    tables.undo(job)
    assert content(live, "chain") == before


def test_a_table_without_columns_gets_its_rows_back(live, job, tmp_path):
    live.psql("CREATE TABLE blank (); INSERT INTO blank DEFAULT VALUES; INSERT INTO blank DEFAULT VALUES", DATABASE)
    at_the_backup = dump(live, tmp_path / "then.sql", database=DATABASE)
    live.psql("INSERT INTO blank DEFAULT VALUES", DATABASE)
    job = replace(job, source=str(at_the_backup), tables=["public.blank"], drop_tables=[], checks=[])
    assert tables.check(job)["evidence"]["rows"] == {"public.blank": (3, 2)}
    tables.restore(job)
    assert live.psql("SELECT count(*) FROM blank", DATABASE) == "2"
    tables.undo(job)
    assert live.psql("SELECT count(*) FROM blank", DATABASE) == "3"


def test_foreign_keys_on_types_with_operators_of_their_own(live, job, tmp_path):
    """Each compares as its key does: citext whatever the case, ltree with an operator outside of pg_catalog."""
    live.psql(
        """
        CREATE EXTENSION citext; CREATE EXTENSION ltree;
        CREATE TABLE cities (name citext PRIMARY KEY, path ltree UNIQUE, tags int[] UNIQUE,
          code text COLLATE "C" UNIQUE);
        CREATE TABLE people (id int, city citext REFERENCES cities, path ltree REFERENCES cities (path),
          tags int[] REFERENCES cities (tags), code varchar(9) COLLATE "POSIX" REFERENCES cities (code));
        INSERT INTO cities VALUES ('Jakarta', 'id.jawa', '{1,2}', 'j');
        INSERT INTO people VALUES (1, 'JAKARTA', 'id.jawa', '{1,2}', 'j'), (2, NULL, NULL, NULL, NULL);
        """,
        DATABASE,
    )
    at_the_backup = dump(live, tmp_path / "then.sql", database=DATABASE)
    live.psql("DELETE FROM people; UPDATE cities SET tags = '{3}'", DATABASE)
    checks = [{"query": "SELECT count(*) FROM people JOIN cities ON city = name", "expect": 1}]
    people = replace(job, source=str(at_the_backup), tables=["public.people"], drop_tables=[], checks=checks)
    with untouched(live), pytest.raises(BalikError, match=r"would violate people_tags_fkey .* \(1 row\); expected"):
        tables.check(people)
    both = replace(people, tables=["public.people", "public.cities"])
    assert "people_city_fkey from public.people to public.cities" in tables.check(both)["says"]
    assert tables.restore(both)["changed"]
    tables.verify(both)


def test_a_question_that_is_no_sql_is_refused_before_anything_has_begun(live, job):
    with untouched(live), pytest.raises(BalikError, match=r"check 1: syntax error .*; expected one query"):
        tables.check(replace(job, checks=[{"query": "SELEC 1", "expect": 1}]))


def test_a_plan_that_was_edited_between_two_starts_is_not_taken_for_done(live, job):
    began = replace(job, tables=["public.badges"], drop_tables=[])
    tables.restore(began)
    before = catalog(live), content(live)
    for given in ({"tables": [*began.tables, "public.scores"]}, {"drop_tables": NEW}):
        edited = replace(began, **given)
        for act in (tables.check, tables.restore, tables.verify):
            with pytest.raises(BalikError, match=r"db_restore_(drop_)?tables: public.*, while this run began with "):
                act(edited)
        assert (catalog(live), content(live)) == before
    assert ": public.badges are as they were" in tables.undo(replace(began, tables=["public.scores"]))["says"]
    assert live.psql("SELECT count(*) FROM badges WHERE label = 'x'", DATABASE) == "20", "what this run did is undone"


def test_a_table_that_the_release_changed(live, job):
    live.psql(
        "ALTER TABLE leaderboard ADD COLUMN streak int NOT NULL DEFAULT 7, ADD CHECK (streak > 0);"
        "COMMENT ON COLUMN leaderboard.streak IS 'Beruntun'; CREATE INDEX by_streak ON leaderboard (streak);"
        "DROP INDEX by_points; UPDATE leaderboard SET streak = id;"
        "ALTER TABLE leaderboard DISABLE TRIGGER touch",
        DATABASE,
    )
    job = replace(job, tables=["public.leaderboard"], drop_tables=[])
    before = catalog(live), content(live)
    with (
        untouched(live),
        pytest.raises(BalikError, match=r"column streak: new, .*index by_points: missing, trigger touch"),
    ):
        tables.restore(job)
    done = tables.restore(replace(job, definitions="keep"))
    assert done["evidence"]["definitions_changed"] == {}
    assert (
        live.psql("SELECT count(*), min(streak), max(streak), max(touched) FROM leaderboard", DATABASE) == "300|7|7|2"
    )
    tables.undo(job)
    assert (catalog(live), content(live)) == before
    done = tables.restore(replace(job, definitions="restore", run="second"))
    assert "column streak: new" in done["evidence"]["definitions_changed"]["public.leaderboard"]
    assert content(live)["leaderboard"] == content(live, "known_good")["leaderboard"]
    assert "streak" not in catalog(live)
    assert "by_points" in catalog(live)
    tables.undo(replace(job, run="second"))
    assert (catalog(live), content(live)) == before


@pytest.mark.parametrize("kind", ["s.sql", "s.dump", "s.dir", "s.sql.gz"])
def test_a_column_that_the_release_changed_is_told_by_check(live, job, snapshots, kind):
    if kind == "s.sql.gz":
        subprocess.run(["gzip", "-kf", snapshots / "s.sql"], check=True)
    job = replace(job, source=str(snapshots / kind))
    assert "compared only when the backup is loaded: indexes, constraints and triggers" in tables.check(job)["says"]
    live.psql("ALTER TABLE leaderboard ADD COLUMN motto text", DATABASE)
    with untouched(live):
        for early in (replace(job, inspect=False), job):
            with pytest.raises(BalikError, match=r"leaderboard: defined otherwise .*: column motto: new; .*'keep'"):
                tables.check(early)
        for wanted in ("keep", "restore"):
            tables.check(replace(job, definitions=wanted))
    live.psql("ALTER TABLE badges ALTER label TYPE varchar(99)", DATABASE)
    with untouched(live), pytest.raises(BalikError, match=r"column label: another; .* Restore the whole database"):
        tables.check(replace(job, definitions="restore"))


@pytest.mark.parametrize(
    "hidden",
    ["); COMMIT; DROP TABLE public.users; CREATE TABLE public.x (a int", ") AS SELECT 1 WHERE lo_create(0) > (0"],
)
def test_check_runs_nothing_that_a_definition_hides(live, job, snapshots, tmp_path, hidden):
    source = tmp_path / "hidden.sql"
    text = (snapshots / "s.sql").read_text()
    source.write_text(text.replace("    label text\n);", f"    label text{hidden}\n);"))
    assert source.read_text() != text
    job = replace(job, source=str(source), inspect=False)
    with untouched(live):
        assert (
            "when the backup is loaded: indexes, constraints and triggers, columns of public.badges"
            in (tables.check(job)["says"])
        )
    assert live.psql("SELECT count(*) FROM pg_largeobject_metadata", DATABASE) == "0"


def test_a_table_that_the_release_made_refer_to_a_new_one(live, job):
    live.psql(
        "ALTER TABLE leaderboard ADD COLUMN season_id int REFERENCES seasons; UPDATE leaderboard SET season_id = 2",
        DATABASE,
    )
    before = catalog(live), content(live)
    with untouched(live), pytest.raises(BalikError, match="hang on it foreign key leaderboard_season_id_fkey"):
        tables.check(job)
    job = replace(job, definitions="restore")
    tables.check(job)
    tables.restore(job)
    assert (catalog(live), content(live)) == (catalog(live, "known_good"), content(live, "known_good"))
    tables.undo(job)
    assert (catalog(live), content(live)) == before


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "rows that others refer to": (
        "INSERT INTO badges VALUES (21, 'baru'); INSERT INTO user_badges VALUES (1, 21)",
        {},
        r"would violate user_badges_badge_id_fkey from public.user_badges to public.badges \(1 row\)",
    ),
    "rows that refer to others": (
        "SET session_replication_role = replica; DELETE FROM users WHERE id = 300",
        {"tables": ["public.leaderboard"]},
        r"would violate leaderboard_user_id_fkey from public.leaderboard to public.users \(1 row\)",
    ),
    "a view on a new table": (
        "CREATE VIEW mine AS SELECT * FROM seasons",
        {},
        r"cannot be dropped: there hang on it view public\.mine",
    ),
    "a reference to a new table": (
        "CREATE TABLE prizes (season int REFERENCES seasons)",
        {},
        r"there hang on it foreign key prizes_season_fkey of public\.prizes",
    ),
    "what else hangs on a view": (
        "ALTER TABLE users ADD COLUMN best season_top;"
        "CREATE FUNCTION rank(season_top) RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "CREATE FUNCTION first() RETURNS SETOF season_top LANGUAGE sql AS 'SELECT * FROM public.season_top LIMIT 1';"
        "CREATE POLICY few ON users USING (name IN (SELECT name FROM season_top))",
        {},
        r"there hang on it column best of table public\.users, function public\.first\(\), "
        r"function public\.rank\(public\.season_top\), policy few on table public\.users",
    ),
    "a default by a new table's sequence": (
        "ALTER TABLE users ALTER COLUMN id SET DEFAULT nextval('seasons_id_seq')",
        {},
        r"there hang on it default value for column id of table public\.users",
    ),
    "a table that inherits": ("CREATE TABLE old () INHERITS (seasons)", {}, r"table public\.old;"),
    "capitals": ("", {"tables": ["public.Leaderboard"]}, r"not there; there is public\.leaderboard"),
    "a table that is new": ("", {"tables": ["public.seasons"], "drop_tables": []}, r"does not hold public\.seasons"),
    "no schema": ("", {"tables": ["leaderboard"]}, "expected a schema and a name"),
    "twice": ("", {"drop_tables": ["public.badges"]}, r"public\.badges twice"),
    "none": ("", {"tables": [], "drop_tables": []}, "both empty"),
    "a partition": ("", {"tables": ["public.scores_1"]}, r"a partition; .*Name the partitioned table itself"),
    "a view": ("", {"tables": ["public.top"]}, "no table"),
    "a column that is gone": (
        "ALTER TABLE badges DROP COLUMN label",
        {},
        'lack a column that the backup has: .*"label"',
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_by_check_and_by_main(live, job, what):
    statement, given, reason = REFUSED[what]
    live.psql(statement, DATABASE)
    with untouched(live):
        with pytest.raises(BalikError, match=reason):
            tables.check(replace(job, **given))
        if statement or given.get("drop_tables") == []:  # the others are refused by the same lines
            with pytest.raises(BalikError):
                tables.restore(replace(job, **given))


def test_a_partition_on_another_server_is_refused_and_keeps_its_rows(live, job):
    """No backup holds its rows, and to empty the table would empty it there."""
    live.psql("CREATE DATABASE archive")
    live.psql(
        "CREATE TABLE scores_old (day date, points int); INSERT INTO scores_old VALUES ('2025-01-01', 1)", "archive"
    )
    live.psql(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER archive FOREIGN DATA WRAPPER postgres_fdw"
        f" OPTIONS (host '{live.host}', port '{live.port}', dbname 'archive');"
        "CREATE USER MAPPING FOR postgres SERVER archive OPTIONS (user 'postgres');"
        "CREATE TABLE old (day date, points int) PARTITION BY RANGE (day);"
        "CREATE FOREIGN TABLE scores_old PARTITION OF old"
        " FOR VALUES FROM ('2025-01-01') TO ('2025-02-01') SERVER archive",
        DATABASE,
    )
    source = dump(live, Path(job.folder).with_name("x.sql"), database=DATABASE)
    job = replace(job, source=str(source), tables=["public.old"], drop_tables=[], checks=[])
    for act in (tables.check, tables.restore):
        with pytest.raises(BalikError, match=r"public.old in .*: has partitions on another server: public.scores_old;"):
            act(job)
    assert live.psql("SELECT count(*) FROM scores_old", "archive") == "1"


def test_two_servers_do_not_share_what_one_run_keeps(live, job):
    """Both are restored from one host, such as managed ones are; each has a database of the same name."""
    tables.restore(job)
    kept = {path: path.read_bytes() for path in Path(job.folder).iterdir()}
    with postgresql(wal_level="logical") as other:
        other.psql("CREATE DATABASE known_good")
        other.psql(FEATURE, "known_good")
        other.psql(f'CREATE DATABASE "{DATABASE}" TEMPLATE known_good')
        other.psql(RELEASE, DATABASE)
        there = replace(job, access=replace(job.access, port=other.port))
        for act in (tables.check, tables.restore, tables.undo):
            with (
                untouched(other),
                pytest.raises(BalikError, match="belongs to database info pekerjaan of another serv"),
            ):
                act(there)
    assert {path: path.read_bytes() for path in Path(job.folder).iterdir()} == kept
    assert not tables.restore(job)["changed"]
    assert tables.undo(job)["changed"]


def test_what_a_run_did_is_not_guessed_where_its_file_is_gone(live, job, tmp_path):
    with untouched(live), pytest.raises(BalikError, match=r"If no restore of this run began, there is nothing to undo"):
        tables.undo(job)
    tables.restore(job)
    kept = {path: path.read_bytes() for path in Path(job.folder).glob("*.dump")}
    state = Path(job.folder) / f"info_pekerjaan-{RUN}-tables.json"
    state.rename(tmp_path / "away")
    elsewhere = replace(job, folder=str(tmp_path / "another"))
    with untouched(live):
        for wanted in (job, elsewhere):
            with pytest.raises(
                BalikError, match=r"-tables.json: not there, so it is not known whether this run restored"
            ):
                tables.undo(wanted)
        with pytest.raises(BalikError, match=r"not there.* move .*-tables.dump and .*-dropped.dump elsewhere"):
            tables.restore(job)
    assert {path: path.read_bytes() for path in Path(job.folder).glob("*.dump")} == kept
    for spoiled in ("{", "[1]", "3"):
        state.write_text(spoiled)
        with untouched(live), pytest.raises(BalikError, match=r"-tables.json: cannot be read"):
            tables.undo(job)
    (tmp_path / "away").rename(state)
    assert tables.restore(job)["changed"] is False
    assert tables.undo(job)["changed"]


def test_a_restore_that_changed_nothing_is_known_as_such(live, job):
    with untouched(live):
        with pytest.raises(BalikError, match="found 300"):
            tables.restore(replace(job, checks=[{"query": "SELECT count(*) FROM leaderboard", "expect": 1}]))
        assert tables.undo(job)["changed"] is False


def test_a_copy_of_the_server_that_does_not_know_the_restore_is_told(live, job):
    """Copied from one data folder, two servers have one identifier."""
    tables.restore(job)
    state = Path(job.folder) / f"info_pekerjaan-{RUN}-tables.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"xid": "4000000000"}))
    with untouched(live), pytest.raises(BalikError, match=r"transaction 4000000000 .* which is another one"):
        tables.undo(job)


@pytest.mark.parametrize("spoiled", ["a folder", "no text", "a loop"])
def test_a_file_of_the_run_that_cannot_be_read_is_told(live, job, spoiled):
    folder = Path(job.folder)
    folder.mkdir()
    whose = folder / f"info_pekerjaan-{RUN}.of"
    if spoiled == "a folder":
        whose.mkdir()
    elif spoiled == "no text":
        whose.write_bytes(b"\xff\xfe")
    else:  # root is let in everywhere, but not by a link to itself
        whose.symlink_to(whose)
    whole = replace(job, tables=[], drop_tables=[], checks=[])
    with untouched(live):
        for act, wanted in (
            (tables.check, job),
            (tables.restore, job),
            (restore.check, whole),
            (restore.restore, whole),
        ):
            with pytest.raises(BalikError, match=r"\.of: cannot be read: "):
                act(wanted)


def test_whose_the_files_are_is_written_whole_or_not_at_all(live, job, tmp_path):
    """A disk with room for an empty file, and no more."""
    with small_disk(tmp_path / "now", "4k") as folder, untouched(live):
        (folder / "full").write_bytes(b"x" * 4096)
        with pytest.raises(BalikError, match=r"\.of: cannot be written: No space left on device"):
            tables.restore(job)
        assert [path.name for path in folder.iterdir()] == ["full"]


def test_a_lock_held_for_ever_is_told_and_nothing_is_done(live, job):
    with untouched(live), psycopg.connect(live.dsn(DATABASE), application_name="laporan") as holder:
        holder.execute("UPDATE badges SET label = 'y' WHERE id = 1")
        with pytest.raises(BalikError, match=r"no lock within the limit; held by pid \d+ \(postgres, laporan, idle in"):
            tables.restore(replace(job, lock_limit=1))
        holder.rollback()
        holder.execute("SELECT count(*) FROM badges")  # a reader is in the way of the second lock only
        with pytest.raises(BalikError, match=r"held by .*laporan"):
            tables.restore(replace(job, lock_limit=1))
        holder.rollback()
    assert tables.restore(job)["changed"]


def test_a_full_disk_for_what_is_kept_is_told_and_nothing_is_done(live, job, tmp_path):
    with small_disk(tmp_path / "now", "8k"), untouched(live):
        with pytest.raises(BalikError, match=r"8 kB free; expected about .* for the backup of now"):
            tables.check(job)
        with pytest.raises(BalikError, match=r"pg_dump ended with 1: .*No space left on device"):
            tables.restore(job)


def test_without_the_right_nothing_is_begun(live, job):
    live.psql(
        f'CREATE ROLE half LOGIN CREATEDB; GRANT pg_signal_backend TO half; ALTER DATABASE "{DATABASE}" OWNER TO half'
    )
    live.psql("GRANT USAGE ON SCHEMA public TO half", DATABASE)
    with untouched(live):
        job = replace(job, access=replace(job.access, user="half"))
        for act in (tables.check, tables.restore):
            with pytest.raises(BalikError, match=r"hides rows of public\.leaderboard .* ALTER ROLE \"half\" BYPASSRLS"):
                act(job)
        live.psql("ALTER ROLE half BYPASSRLS")
        for act in (tables.check, tables.restore):
            with pytest.raises(BalikError, match="may not set session_replication_role"):
                act(job)


SCRIPT = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[2]);"
    "from ansible_collections.balik.rollback.plugins.module_utils.database import access, tables, task;"
    "given = json.loads(sys.argv[1]); given['access'] = access.Access(**given['access']);"
    "getattr(tables, sys.argv[3])(task.Task(**given))"
)


@contextmanager
def started(job: Task, act: str = "restore") -> Iterator[subprocess.Popen]:
    given = json.dumps({**vars(job), "access": vars(job.access)})
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, given, json.dumps(sys.path), act], stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def active(live: Server, query: str) -> bool:
    return live.psql(f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '{query}'") != "0"


@pytest.mark.parametrize("act", ["restore", "undo"])
@pytest.mark.parametrize("how", ["the run", "the server"])
def test_killed_in_the_middle_it_is_as_if_never_begun(live, job, act, how):
    job = replace(job, lock_limit=60)
    if act == "undo":
        tables.restore(job)
    live.psql("CHECKPOINT")  # else sequences come back from a crash with up to 32 values given away
    before = catalog(live), content(live)
    # A reader lets the dump of now through, and stops what comes after it.
    with closing(psycopg.connect(live.dsn(DATABASE))) as reader, started(job, act) as process:
        reader.execute("SELECT count(*) FROM badges")
        wait_for(lambda: active(live, "LOCK TABLE%ACCESS EXCLUSIVE%"), "it is in the middle of its transaction")
        if how == "the run":
            process.kill()
        else:
            live.kill()
            live.start()
        process.wait(30)
        if how == "the run":
            reader.rollback()
    wait_for(lambda: not active(live, "LOCK TABLE%"), "the server has taken it back")
    assert (catalog(live), content(live)) == before
    if act == "restore":
        assert tables.restore(job)["changed"]
        assert content(live) == content(live, "known_good")
    else:
        assert tables.undo(job)["changed"]
        assert "seasons" in catalog(live)
    assert databases(live) == [DATABASE]


def test_killed_after_the_commit_it_is_done(live, job):
    """The tables are still locked for VACUUM when it is killed: the transaction is over, and nothing is done twice."""
    with started(job) as process:
        state = Path(job.folder) / f"info_pekerjaan-{RUN}-tables.json"
        wait_for(lambda: state.exists() and "xid" in state.read_text(), "the transaction is about to end")
        xid = json.loads(state.read_text())["xid"]
        wait_for(lambda: live.psql(f"SELECT pg_xact_status('{xid}')") != "in progress", "it has ended")
        process.kill()
        process.wait()
    live.psql("UPDATE leaderboard SET points = 77 WHERE id = 1", DATABASE)
    assert tables.restore(job)["changed"] is False
    assert live.psql("SELECT points FROM leaderboard WHERE id = 1", DATABASE) == "77"
    assert databases(live) == [DATABASE]
    tables.undo(job)
    assert live.psql("SELECT count(*) FROM leaderboard", DATABASE) == "350"


@pytest.mark.parametrize("act", ["restore", "undo"])
def test_what_an_earlier_start_still_finishes_is_not_done_again(live, job, act, monkeypatch):
    """The playbook was killed and the module went on; the next start waits for it, and users write in between."""
    monkeypatch.setattr(database_task, "_ENDING", 60)
    job = replace(job, lock_limit=60)
    if act == "undo":
        tables.restore(job)
    asks = "query LIKE 'select pg_try_advisory_lock%' OR query LIKE '%where l.locktype = ''advisory''%'"
    waiting = f"SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND ({asks})"
    with closing(psycopg.connect(live.dsn(DATABASE))) as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("SELECT count(*) FROM badges")
        with started(job, act) as process:
            wait_for(lambda: active(live, "LOCK TABLE%ACCESS EXCLUSIVE%"), "it is in the middle of its transaction")
            second = pool.submit(getattr(tables, act), job)
            wait_for(lambda: live.psql(waiting) != "0", "the next start waits")
            reader.rollback()
            assert process.wait(30) == 0
            live.psql("INSERT INTO badges VALUES (777, 'after it')", DATABASE)
        assert second.result(30)["changed"] is False
    assert live.psql("SELECT label FROM badges WHERE id = 777", DATABASE) == "after it"
    if act == "restore":
        tables.undo(job)
        assert live.psql("SELECT count(*) FROM leaderboard", DATABASE) == "350", "what stood there before the run"


def test_what_was_kept_and_spoiled_is_not_brought_back(live, job):
    tables.restore(job)
    kept = Path(job.folder) / f"info_pekerjaan-{RUN}-tables.dump"
    content_of = bytearray(kept.read_bytes())
    content_of[-50] ^= 0xFF
    kept.write_bytes(content_of)
    with untouched(live), pytest.raises(BalikError, match="its SHA-256 is"):
        tables.undo(job)
