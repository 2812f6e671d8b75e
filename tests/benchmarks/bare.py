"""The least a Starlette application can do for a read: one route, fixed bytes. What ours is compared with."""

from __future__ import annotations

import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

BODY = b'{"resourceType":"Patient","id":"sample-01","active":true}' * 20


async def read(request: Request) -> Response:
    return Response(BODY, media_type="application/fhir+json", headers={"ETag": 'W/"1"'})


def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    app = Starlette(routes=[Route("/fhir/{type}/{id}", read)])
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_config=None, access_log=False, server_header=False
    )
    print(f"ready on http://127.0.0.1:{listening.getsockname()[1]}/fhir", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    sys.exit(main())
