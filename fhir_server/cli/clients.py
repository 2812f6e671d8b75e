"""`fhir-server client add|list|remove`: the apps and services that may ask for tokens. A secret is shown once and kept hashed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from secrets import token_hex
from typing import Any

from fhir_server.auth.authority import Authority
from fhir_server.auth.clients import check_redirect_uri
from fhir_server.auth.oauth import OAuthError, new_secret
from fhir_server.auth.scopes import LAUNCH_SCOPES, Scope, split
from fhir_server.cli import authority as place
from fhir_server.errors import BadRequest
from fhir_server.store.credentials import Client, ClientKind


def configure(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    add = acts.add_parser("add", help="register an app or a service; prints its id, and its secret once")
    add.add_argument("name", help="what users see when they are asked for consent")
    add.add_argument("--id", default="", help="client_id; made up if not given")
    add.add_argument("--scope", required=True, help="the most it may ever be given, separated by spaces")
    add.add_argument("--redirect-uri", action="append", default=[], help="where users are sent back to; exact")
    add.add_argument("--launch-uri", default="", help="where an EHR starts it")
    add.add_argument("--backend", action="store_true", help="a service without users (client_credentials)")
    way = add.add_mutually_exclusive_group()
    way.add_argument("--public", action="store_true", help="an app that can keep no secret: PKCE alone")
    way.add_argument("--jwks", type=Path, help="a file with its public keys (private_key_jwt)")
    way.add_argument("--jwks-uri", default="", help="where it publishes them")
    add.add_argument("--role", choices=["administrator"], help="of a service: administrator may search the audit")
    add.add_argument("--clearance", choices=["N", "R", "V"], default="N", help="highest label a service may see")
    add.add_argument("--introspects", action="store_true", help="may introspect the tokens of other clients")
    place.configure(add)
    listed = acts.add_parser("list", help="who is registered")
    place.configure(listed)
    remove = acts.add_parser("remove", help="end a registration and every token that was given to it")
    remove.add_argument("id")
    place.configure(remove)


def run(args: argparse.Namespace) -> int:
    return place.with_authority(args, lambda authority: _ACTS[args.act](authority, args))


async def _add(authority: Authority, args: argparse.Namespace) -> int:
    kind, jwks = _kind(args)
    if not args.backend and not args.redirect_uri:
        raise BadRequest("An app with users needs --redirect-uri; a service without users is --backend")
    if args.backend and kind == "public":
        raise BadRequest("A service without users cannot be public: it has nothing to prove who it is")
    scopes = _scopes(args.scope)
    if args.backend and not any(scope.startswith("system/") for scope in scopes):
        raise BadRequest("A service without users needs system/ scopes, such as system/Observation.rs")
    try:
        for uri in args.redirect_uri:
            check_redirect_uri(uri)
    except OAuthError as error:
        raise BadRequest(error.description) from None
    id = args.id or token_hex(9)  # not url-safe base64: an id that begins with "-" would read as an option
    if await authority.credentials.client(id) is not None:
        raise BadRequest(f"A client {id!r} is registered; remove it first")
    secret = new_secret() if kind == "confidential-symmetric" else ""
    client = Client(
        id=id,
        name=args.name,
        kind=kind,
        secret_hash=await authority.passwords.hash(secret) if secret else "",
        jwks=jwks,
        jwks_uri=args.jwks_uri,
        redirect_uris=tuple(args.redirect_uri),
        grant_types=("client_credentials",) if args.backend else ("authorization_code", "refresh_token"),
        scopes=tuple(scopes),
        roles=frozenset({args.role} if args.role else ()),
        clearance=args.clearance,
        launch_uri=args.launch_uri,
        introspects=args.introspects,
        created=int(authority.now()),
    )
    await authority.credentials.put_client(client)
    print(f"client_id     {id}")
    if secret:
        print(f"client_secret {secret}")
        print("The secret is not kept in this form and cannot be shown again.", file=sys.stderr)
    return 0


async def _list(authority: Authority, args: argparse.Namespace) -> int:
    for client in await authority.credentials.all_clients():
        print(f"{client.id}\t{client.kind}\t{client.name}\t{' '.join(client.scopes)}")
    return 0


async def _remove(authority: Authority, args: argparse.Namespace) -> int:
    if await authority.credentials.remove_client(args.id):
        return 0
    print(f"fhir-server: no client {args.id!r}", file=sys.stderr)
    return 1


_ACTS = {"add": _add, "list": _list, "remove": _remove}


def _kind(args: argparse.Namespace) -> tuple[ClientKind, dict[str, Any] | None]:
    if args.public:
        return "public", None
    if args.jwks_uri:
        return "confidential-asymmetric", None
    if args.jwks is None:
        return "confidential-symmetric", None
    try:
        jwks = json.loads(args.jwks.read_text())
        keys = jwks.get("keys", [jwks])
        usable = [key for key in keys if key.get("kty") in ("RSA", "EC") and key.get("kid")]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadRequest(f"{args.jwks} is not a JWKS file: {error}") from None
    if not usable:
        raise BadRequest(f"{args.jwks} has no RSA or EC key with a `kid`")
    private = {"d", "p", "q", "dp", "dq", "qi"}
    return "confidential-asymmetric", {"keys": [{n: key[n] for n in key if n not in private} for key in usable]}


def _scopes(text: str) -> list[str]:
    scopes = split(text)
    for scope in scopes:
        if scope not in LAUNCH_SCOPES:
            try:
                Scope.parse(scope)
            except ValueError as error:
                raise BadRequest(str(error)) from None
    return scopes
