"""A mail server (port 1025) and a web hook (any POST on port 8088) that keep what they get; GET /log shows it all."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import time

from aiohttp import web
from aiosmtpd.controller import UnthreadedController

MAILS: list[dict] = []
HOOKS: list[dict] = []


class Mailbox:
    async def handle_DATA(self, server, session, envelope) -> str:
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        text = message.get_body(("plain", "html"))
        MAILS.append(
            {
                "at": time.time(),
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "subject": str(message["subject"] or ""),
                "text": text.get_content() if text else "",
            }
        )
        return "250 OK"


async def hook(request: web.Request) -> web.Response:
    text = await request.text()
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    HOOKS.append({"at": time.time(), "path": request.path, "body": body})
    return web.json_response({"ok": True})


async def log(_: web.Request) -> web.Response:
    text = json.dumps({"mails": MAILS, "hooks": HOOKS}, ensure_ascii=False, indent=2)
    return web.Response(text=text, content_type="application/json")


async def clear(_: web.Request) -> web.Response:
    MAILS.clear()
    HOOKS.clear()
    return web.json_response({"ok": True})


async def mail_server(_: web.Application):
    controller = UnthreadedController(Mailbox(), hostname="0.0.0.0", port=1025, loop=asyncio.get_running_loop())
    server = await controller._create_server()
    yield
    server.close()


if __name__ == "__main__":
    app = web.Application()
    app.cleanup_ctx.append(mail_server)
    app.router.add_get("/log", log)
    app.router.add_delete("/log", clear)
    app.router.add_post("/{path:.*}", hook)
    web.run_app(app, port=8088, access_log=None, print=None)
