"""Customers: a steady stream of requests over kept-alive connections to both entrances, bounded in number and time.

What counts is that each request is answered whole, whatever the answer: a 500 and the maintenance page are answers.
A request is *dropped* when the connection was refused, reset or closed before the answer was complete, or nothing came
within the limit.

Environment: ENTRANCES (host:port, comma separated), RATE (requests per second), MAX_REQUESTS, MAX_SECONDS, PORT (8089).
GET /stats says what happened since the start; POST /stop ends the stream and answers when the last request is answered.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import random
import time

import uvloop
from aiohttp import web

LIMIT = 30.0
# Well below what servers keep an idle connection for: as browsers do, a customer does not use one that may be closing.
IDLE = 15.0
CONNECTIONS = 400
SAVED = json.dumps({"title": "Surat Kuasa (lalu lintas)", "body": "Kuasa penuh — § 1792 KUH Perdata. 委任状"}).encode()
ASKED = json.dumps({"question": "Berapa lama masa berlaku surat kuasa?"}).encode()


class Stats:
    """Counts since the start; `report` is what GET /stats answers."""

    def __init__(self) -> None:
        self.sent = 0
        self.answered = 0
        self.by_status: collections.Counter[int] = collections.Counter()
        self.by_entrance: collections.Counter[str] = collections.Counter()
        self.dropped: list[dict] = []
        self.dropped_count = 0
        self.longest = 0.0
        self.started = time.time()
        self.running = True

    def drop(self, entrance: str, request: str, error: BaseException) -> None:
        self.dropped_count += 1
        if len(self.dropped) < 50:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            self.dropped.append({"at": time.time(), "entrance": entrance, "request": request, "error": reason})

    def report(self) -> dict:
        return {
            "running": self.running,
            "seconds": round(time.time() - self.started, 3),
            "sent": self.sent,
            "answered": self.answered,
            "in_flight": self.sent - self.answered - self.dropped_count,
            "dropped": self.dropped_count,
            "drops": self.dropped,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "by_entrance": dict(self.by_entrance),
            "longest_seconds": round(self.longest, 3),
        }


class Entrance:
    """One load balancer, and the idle connections to it, each with the moment of its last answer, oldest first."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)
        self.idle: collections.deque[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = collections.deque()
        self.room = asyncio.Semaphore(CONNECTIONS)

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection that was used last, so that the others can grow old and go; a new one when there is none."""
        while self.idle and (self.idle[0][0] < time.monotonic() - IDLE or self.idle[0][1].at_eof()):
            self.idle.popleft()[2].close()
        while self.idle:
            _, reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port)

    async def ask(self, method: str, path: str, body: bytes = b"") -> int:
        """The answer's status, once the whole answer is read.

        :raises OSError: refused or reset. :raises EOFError: closed before the answer was complete.
        """
        reader, writer = await self.connection()
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: lawyers-hub.example\r\n"
            if body:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"\r\n" + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in answer[1:])}
            if headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    await reader.readexactly(size + 2)
                await reader.readexactly(2)
            else:
                await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.transport.abort()
            raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self.idle.append((time.monotonic(), reader, writer))
        return int(answer[0].split()[1])


async def one(entrance: Entrance, stats: Stats, method: str, path: str, body: bytes) -> None:
    started = time.perf_counter()
    try:
        status = await asyncio.wait_for(entrance.ask(method, path, body), LIMIT)
    except (OSError, EOFError, ValueError, KeyError, asyncio.TimeoutError) as error:
        stats.drop(entrance.address, f"{method} {path}", error)
    else:
        stats.answered += 1
        stats.by_status[status] += 1
        stats.by_entrance[entrance.address] += 1
    finally:
        stats.longest = max(stats.longest, time.perf_counter() - started)
        entrance.room.release()


def requests():
    """What customers do: mostly read documents, sometimes the home page, now and then save one or ask a question."""
    kinds = random.Random(2026)
    for number in itertools.count():
        if number % 100 == 50:
            yield "POST", "/ask", ASKED
        elif number % 50 == 25:
            yield "POST", "/documents", SAVED
        elif number % 5 == 0:
            yield "GET", "/", b""
        else:
            yield "GET", f"/documents/{kinds.randint(1, 5000)}", b""


async def stream(entrances: list[Entrance], stats: Stats) -> None:
    """Sends until a bound is reached or `stats.running` is taken away; returns when the last request is answered."""
    rate, most, seconds = float(os.environ["RATE"]), int(os.environ["MAX_REQUESTS"]), float(os.environ["MAX_SECONDS"])
    under_way: set[asyncio.Task] = set()
    began = time.monotonic()
    turn = itertools.cycle(entrances)
    for number, (method, path, body) in enumerate(itertools.islice(requests(), most)):
        # A tick in advance of the clock is slept off; a late one is sent at once.
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        if not stats.running or time.monotonic() - began > seconds:
            break
        entrance = next(turn)
        await entrance.room.acquire()
        stats.sent += 1
        task = asyncio.create_task(one(entrance, stats, method, path, body))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    stats.running = False
    await asyncio.gather(*under_way)


async def keep_streaming(app: web.Application):
    app["stats"] = Stats()
    entrances = [Entrance(address) for address in os.environ["ENTRANCES"].split(",")]
    app["stream"] = asyncio.create_task(stream(entrances, app["stats"]))
    yield
    app["stats"].running = False
    app["stream"].cancel()


async def show(request: web.Request) -> web.Response:
    return web.json_response(request.app["stats"].report())


async def stop(request: web.Request) -> web.Response:
    request.app["stats"].running = False
    await asyncio.shield(request.app["stream"])
    return await show(request)


if __name__ == "__main__":
    uvloop.install()
    app = web.Application()
    app.cleanup_ctx.append(keep_streaming)
    app.router.add_get("/stats", show)
    app.router.add_post("/stop", stop)
    web.run_app(app, port=int(os.environ.get("PORT", "8089")), access_log=None, print=None)
