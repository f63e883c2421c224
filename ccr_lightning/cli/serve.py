"""``ccr serve``: a local web page that searches an index, and the JSON behind it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.errors import CCRError, Stopped

HELP = """\
usage: ccr serve INDEX [--port N] [--host ADDRESS] [--ckpt_path MODEL]

Serves a web page that searches the pictures of an index: in any language, in several side by side with what moved in
rank between them, or with a picture. It works offline, and only this machine reaches it. Ctrl-C ends it.

arguments:
  INDEX                 a folder that 'ccr embed' wrote

options:
  --port N              (default: 8000; 0 takes a free one)
  --host ADDRESS        another address of this machine, or 0.0.0.0 for all: whoever reaches it sees the pictures
                        (default: 127.0.0.1)
  --ckpt_path MODEL     the model that made the index, if it has moved

examples:
  ccr embed ~/Pictures -o pictures.index --ckpt_path google/siglip2-base-patch16-224
  ccr serve pictures.index
  curl 'http://127.0.0.1:8000/api/search?q=a+red+apple&q=ein+roter+Apfel&k=3'

The JSON is described in docs/search.md, and by the server itself at /openapi.json.
One package more is needed: pip install 'ccr-lightning[serve]'
"""


def run(args: Sequence[str]) -> int:
    """Serves until it is interrupted.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    parser = CommandArguments("serve")
    parser.add_argument("index", type=Path, metavar="INDEX")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--ckpt_path")
    options = parser.parse_args(args)
    if not 0 <= options.port < 2**16:
        parser.error(f"--port is {options.port}: give a number from 0 to {2**16 - 1}")
    try:
        import uvicorn

        from ccr_lightning.serve.app import make_app
    except ImportError as error:
        raise CCRError(f"ccr serve needs the package {error.name!r}: pip install 'ccr-lightning[serve]'") from error
    from ccr_lightning.cli.search import open_index

    with _listen(options.host, options.port) as listener:
        index, model = open_index(options.index, options.ckpt_path)
        config = uvicorn.Config(
            make_app(index, model, hosts={options.host, socket.gethostname()}),
            http="h11",
            ws="none",
            lifespan="off",
            log_level="error",  # without requests, which hold queries
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=500,  # connections, also those that ask nothing; work has limits of its own
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=2**20,  # bytes of a request without its body: queries are in its first line
        )
        print(f"{len(index):,} pictures at {_url(listener, options.host)} (Ctrl-C ends it)", flush=True)
        if not ip_address(listener.getsockname()[0]).is_loopback:
            print("warning: everyone who reaches this address can see and search the pictures.", flush=True)
        with suppress(KeyboardInterrupt, Stopped):  # uvicorn has ended what was going on
            uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CCRError(f"ccr serve: there is no host {host!r}; give an address of this machine with --host.") from error
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = "give another with --port, or --port 0 for a free one"
        if error.errno == errno.EADDRNOTAVAIL:
            hint = "give an address of this machine with --host"
        raise CCRError(f"ccr serve: cannot listen at {host}, port {port} ({reason}): {hint}.") from error


def _url(listener: socket.socket, host: str) -> str:
    port = listener.getsockname()[1]
    if ip_address(listener.getsockname()[0]).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
