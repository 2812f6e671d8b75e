"""The command line, `fhir-server`: a table of commands, each a module with `configure(parser)` and `run(args) -> int`.

A command's module is imported only when it is called, so that `fhir-server version` need not load a server.
Exit codes: 0 done · 1 something failed and was named · 2 the call itself was wrong · 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from fhir_server.errors import FhirError
from fhir_server.settings import misspelt

# name → (module, what it does). docs/cli.md describes each; a test compares.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("fhir_server.cli.serve", "answer requests, with an embedded MongoDB unless --mongo-url is given"),
    "worker": ("fhir_server.cli.worker", "run the hooks engine apart from serve"),
    "demo": ("fhir_server.cli.demo", "serve, with a sample population loaded"),
    "load": ("fhir_server.cli.load", "send bundles, resources, NDJSON and folders of them to a server"),
    "export": ("fhir_server.cli.export", "write every resource of a server to NDJSON files, one a type"),
    "reindex": ("fhir_server.cli.reindex", "index what is stored for new search parameters, or all of it anew"),
    "client": ("fhir_server.cli.clients", "register the apps and services that may ask for tokens"),
    "user": ("fhir_server.cli.users", "add the people who log in"),
    "token": ("fhir_server.cli.token", "print an access token for trying things out"),
    "keys": ("fhir_server.cli.keys", "rotate the key that signs tokens"),
    "audit": ("fhir_server.cli.audit", "check that no AuditEvent was changed or taken away"),
    "content": ("fhir_server.cli.content", "check, load or report the clinical content"),
    "version": ("fhir_server.cli.version", "print the versions that matter in a bug report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if not word.startswith("-")), "")
    try:
        args = _parser(chosen).parse_args(words)
        for name, meant in misspelt().items():
            print(f"fhir-server: {name} is no setting and is ignored; is {meant} meant?", file=sys.stderr)
        module = importlib.import_module(COMMANDS[args.command][0])
        return int(module.run(args))
    except FhirError as error:
        print(f"fhir-server: {error.diagnostics}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `fhir-server … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one command, complete; for the documentation's tests."""
    parser = argparse.ArgumentParser(f"fhir-server {command}", description=COMMANDS[command][1])
    importlib.import_module(COMMANDS[command][0]).configure(parser)
    return parser


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fhir-server", description="A FHIR R4 server on MongoDB. https://hl7.org/fhir/R4")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, does) in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        if name == chosen:
            importlib.import_module(module).configure(command)
    return parser
