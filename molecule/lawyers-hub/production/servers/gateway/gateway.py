"""An AI gateway in small: the OpenAI-compatible endpoints that Lawyers Hub uses, with always the same answer."""

from __future__ import annotations

import os
import time

from aiohttp import web

MODEL = "lawyers-hub"


@web.middleware
async def authorise(request: web.Request, handler):
    key = "Bearer " + os.environ["GATEWAY_KEY"]
    if request.path.startswith("/v1/") and request.headers.get("Authorization") != key:
        error = {"message": "Authentication Error, no valid api key passed in.", "type": "auth_error", "code": "401"}
        return web.json_response({"error": error}, status=401)
    return await handler(request)


async def alive(_: web.Request) -> web.Response:
    return web.json_response("I'm alive!")


async def ready(_: web.Request) -> web.Response:
    return web.json_response({"status": "connected"})


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "openai"}]})


async def complete(request: web.Request) -> web.Response:
    try:
        given = await request.json()
        question = given["messages"][-1]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        error = {"message": "messages: a list of {role, content} is required", "type": "invalid_request_error"}
        return web.json_response({"error": error}, status=400)
    answer = f"Pertanyaan Anda ({len(question)} huruf) sudah diterima. Ini bukan nasihat hukum."
    words = len(str(question).split())
    return web.json_response(
        {
            "id": f"chatcmpl-{time.time_ns():x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": given.get("model", MODEL),
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
            "usage": {"prompt_tokens": words, "completion_tokens": 9, "total_tokens": words + 9},
        }
    )


if __name__ == "__main__":
    app = web.Application(middlewares=[authorise])
    app.router.add_get("/health/liveliness", alive)
    app.router.add_get("/health/readiness", ready)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", complete)
    web.run_app(app, port=4000, access_log=None, print=None)
