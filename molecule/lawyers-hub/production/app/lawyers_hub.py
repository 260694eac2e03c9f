"""Lawyers Hub in small: saves legal documents, shows them, and answers questions through an AI gateway.

One program, two releases, told apart by the environment variable RELEASE that is baked into the image. 1.9.4 is stable.
2.0.0 came with a new text normaliser and a new way of loading documents, and both are broken (class `Release2`).

Environment: RELEASE, DATABASE_URL, REDIS_URL, GATEWAY_URL (…/v1), GATEWAY_KEY, PORT (8000).
"""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import prometheus_client as prometheus
import psycopg
import redis.asyncio as redis
import uvloop
from aiohttp import web
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

RELEASE = os.environ["RELEASE"]
CACHE_SECONDS = 60
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUESTS = prometheus.Counter("http_requests", "Requests answered.", ["code", "method", "path"])
DURATION = prometheus.Histogram(
    "http_request_duration_seconds",
    "From the request's first byte read to the answer handed over.",
    ["method", "path"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
prometheus.Gauge("lawyers_hub_release", "The release that runs.", ["version"]).labels(RELEASE).set(1)


class Release:
    """What a release does its own way."""

    def normalise(self, text: str) -> str:
        return text

    async def before_answer(self, request: web.Request) -> None:
        """Called before each request of the product (not of its health, version and metrics)."""

    async def on_start(self, app: web.Application) -> None:
        """Called once, when the database answers."""


class Release2(Release):
    """2.0.0: loses every letter that is not ASCII, fails one request in eight, takes 5.5 s for one document in six."""

    def __init__(self) -> None:
        self._requests = itertools.count(1)
        self._documents = itertools.count(1)

    def normalise(self, text: str) -> str:
        return text.encode("ascii", "ignore").decode()

    async def before_answer(self, request: web.Request) -> None:
        if next(self._requests) % 8 == 0:
            raise RuntimeError("document loader: relation cache is inconsistent")
        if "id" in request.match_info and next(self._documents) % 6 == 0:
            await asyncio.sleep(5.5)

    async def on_start(self, app: web.Application) -> None:
        """The "reindex" of 2.0.0: normalises the newest documents in place."""
        await query(
            app,
            r"UPDATE documents SET body = regexp_replace(body, '[^\x01-\x7f]', '', 'g') "
            "WHERE id > (SELECT max(id) - 500 FROM documents)",
        )


async def query(app: web.Application, sql: str, *values: Any) -> list[dict[str, Any]]:
    """Rows as dictionaries; tried again when the server has ended the connection (a restart, a swapped database)."""
    for attempt in (1, 2, 3):
        try:
            async with app["database"].connection(timeout=5) as connection:
                cursor = await connection.execute(sql, values or None)
                return await cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            if attempt == 3:
                raise
            await app["database"].check()
    raise AssertionError


@web.middleware
async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Counts and times every request of the product, and turns a failure into a 500."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource else "unknown"
    if path in UNMEASURED:
        return await handler(request)
    started = time.perf_counter()
    try:
        await request.app["release"].before_answer(request)
        response = await handler(request)
    except web.HTTPException as refusal:
        response = refusal
    except Exception:
        logging.exception("%s %s failed", request.method, request.path)
        response = web.json_response({"error": "internal error"}, status=500)
    REQUESTS.labels(str(response.status), request.method, path).inc()
    DURATION.labels(request.method, path).observe(time.perf_counter() - started)
    return response


async def home(request: web.Request) -> web.Response:
    page = PAGE.replace("{release}", html.escape(RELEASE)).replace("{host}", html.escape(socket.gethostname()))
    return web.Response(text=page, content_type="text/html", charset="utf-8")


async def version(request: web.Request) -> web.Response:
    return web.json_response({"version": RELEASE, "release": f"lawyers-hub {RELEASE}", "host": socket.gethostname()})


async def healthz(request: web.Request) -> web.Response:
    """200 when documents can be served; the gateway is told but does not decide, the rest works without it."""

    async def gateway() -> None:
        url = os.environ["GATEWAY_URL"].removesuffix("/v1") + "/health/liveliness"
        async with request.app["http"].get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
            answer.raise_for_status()

    names = ("database", "redis", "gateway")
    outcomes = await asyncio.gather(
        query(request.app, "SELECT 1"), request.app["cache"].ping(), gateway(), return_exceptions=True
    )
    parts = {
        name: type(outcome).__name__ if isinstance(outcome, BaseException) else "ok"
        for name, outcome in zip(names, outcomes)
    }
    healthy = parts["database"] == parts["redis"] == "ok"
    return web.json_response({"status": "ok" if healthy else "failing", **parts}, status=200 if healthy else 503)


async def metrics(request: web.Request) -> web.Response:
    return web.Response(body=prometheus.generate_latest(), headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST})


async def save_document(request: web.Request) -> web.Response:
    try:
        given = await request.json()
        title, body = given["title"], given["body"]
        if not (isinstance(title, str) and title.strip() and isinstance(body, str)):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": 'expected {"title": "…", "body": "…"}'}, status=400)
    rows = await query(
        request.app,
        "INSERT INTO documents (title, body) VALUES (%s, %s) RETURNING id",
        title,
        request.app["release"].normalise(body),
    )
    number = rows[0]["id"]
    return web.json_response({"id": number}, status=201, headers={"Location": f"/documents/{number}"})


async def show_document(request: web.Request) -> web.Response:
    number = int(request.match_info["id"])
    # The release is part of the key: a release must not be given what another one has written.
    key = f"{RELEASE}:document:{number}"
    text = await request.app["cache"].get(key)
    if text is None:
        rows = await query(request.app, "SELECT id, title, body, created_at FROM documents WHERE id = %s", number)
        if not rows:
            return web.json_response({"error": f"no document {number}"}, status=404)
        text = json.dumps(rows[0], default=lambda moment: moment.isoformat(), ensure_ascii=False).encode()
        await request.app["cache"].set(key, text, ex=CACHE_SECONDS)
    return web.Response(body=text, content_type="application/json", charset="utf-8")


async def delete_document(request: web.Request) -> web.Response:
    number = int(request.match_info["id"])
    await query(request.app, "DELETE FROM documents WHERE id = %s", number)
    await request.app["cache"].delete(f"{RELEASE}:document:{number}")
    return web.Response(status=204)


async def ask(request: web.Request) -> web.Response:
    try:
        question = (await request.json())["question"]
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": 'expected {"question": "…"}'}, status=400)
    message = {"model": "lawyers-hub", "messages": [{"role": "user", "content": str(question)}]}
    try:
        async with request.app["http"].post(
            os.environ["GATEWAY_URL"] + "/chat/completions",
            json=message,
            headers={"Authorization": "Bearer " + os.environ["GATEWAY_KEY"]},
        ) as answer:
            answer.raise_for_status()
            completion = await answer.json()
    except (aiohttp.ClientError, asyncio.TimeoutError):
        return web.json_response({"error": "the AI gateway does not answer"}, status=502)
    return web.json_response({"answer": completion["choices"][0]["message"]["content"]})


async def resources(app: web.Application) -> Any:
    """Opens what the app talks to, waiting for a database that still starts; closes it all after the last answer."""
    rows = {"row_factory": dict_row, "autocommit": True}
    app["database"] = AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=8, kwargs=rows, open=False)
    app["cache"] = redis.from_url(os.environ["REDIS_URL"], socket_timeout=2, socket_connect_timeout=2)
    app["http"] = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
    await app["database"].open(wait=True, timeout=150)
    await app["release"].on_start(app)
    yield
    await app["http"].close()
    await app["cache"].close()
    await app["database"].close()


def application() -> web.Application:
    app = web.Application(middlewares=[measure])
    app["release"] = Release2() if RELEASE.startswith("2.") else Release()
    app.cleanup_ctx.append(resources)
    app.router.add_get("/", home)
    app.router.add_get("/version", version)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/documents", save_document)
    app.router.add_get(r"/documents/{id:\d{1,18}}", show_document)
    app.router.add_delete(r"/documents/{id:\d{1,18}}", delete_document)
    app.router.add_post("/ask", ask)
    return app


UNMEASURED = {"/version", "/healthz", "/metrics"}
PAGE = Path(__file__).with_name("home.html").read_text(encoding="utf-8")

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    uvloop.install()
    port = int(os.environ.get("PORT", "8000"))
    # On SIGTERM aiohttp stops listening and lets the requests in flight finish, within Docker's ten seconds.
    web.run_app(application(), port=port, access_log=None, print=None, shutdown_timeout=8)
