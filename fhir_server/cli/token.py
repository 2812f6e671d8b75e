"""`fhir-server token`: an access token for trying things out, without an app and a login."""

from __future__ import annotations

import argparse

from fhir_server.auth.authority import Authority
from fhir_server.auth.oauth import new_secret
from fhir_server.auth.scopes import resource_scopes, split
from fhir_server.cli import authority as place
from fhir_server.errors import BadRequest
from fhir_server.store.credentials import Client, Grant, User

CLIENT = "fhir-server-cli"
LONGEST = 30 * 86400


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scope", required=True, help='what it allows, such as "patient/*.rs" or "system/*.cruds"')
    parser.add_argument("--patient", default="", help="id of the patient that patient/ scopes mean")
    parser.add_argument("--user", default="", help="for this user; without one, for a made-up one that cannot log in")
    parser.add_argument("--ttl", type=int, default=3600, help="how long it lasts, seconds (default: 3600)")
    place.configure(parser, *place.ADDRESS, "tls_cert")


def run(args: argparse.Namespace) -> int:
    print(place.with_authority(args, lambda authority: make(authority, args)))
    return 0


async def make(authority: Authority, args: argparse.Namespace) -> str:
    """The token. Raises BadRequest."""
    texts = split(args.scope)
    scopes = resource_scopes(texts)
    if len(scopes) != len(texts):
        raise BadRequest("--scope takes resource scopes, such as patient/Observation.rs or system/*.cruds")
    if not 0 < args.ttl <= LONGEST:
        raise BadRequest(f"--ttl must be between 1 and {LONGEST} seconds")
    contexts = {scope.context for scope in scopes}
    if "system" in contexts and len(contexts) > 1:
        raise BadRequest("system/ scopes are a service's and do not mix with patient/ and user/ scopes")
    if "patient" in contexts and not args.patient:
        raise BadRequest("patient/ scopes need --patient ID")
    client = Client(id=CLIENT, name="The command line", kind="public", grant_types=(), scopes=tuple(texts))
    await authority.credentials.put_client(client)
    if "system" in contexts:
        return await authority.tokens.access_token(subject=CLIENT, client=client, scopes=texts, lifetime=args.ttl)
    user = await _user(authority, args, "user" in contexts)
    grant = Grant(
        id=new_secret(16),
        client_id=CLIENT,
        subject=user.name,
        scopes=tuple(texts),
        patient=args.patient or None,
        fhir_user=user.fhir_user,
        expires=int(authority.now()) + args.ttl,
    )
    await authority.credentials.put_grant(grant)
    return await authority.tokens.access_token(
        subject=user.name, client=client, scopes=texts, grant=grant, lifetime=args.ttl
    )


async def _user(authority: Authority, args: argparse.Namespace, for_everybody: bool) -> User:
    if args.user:
        user = await authority.credentials.user(args.user)
        if user is None:
            raise BadRequest(f"There is no user {args.user!r}; add one with `fhir-server user add`")
        return user
    if for_everybody:
        user = User(name="try:practitioner", password_hash="", role="practitioner", reach="all",
                    fhir_user="Practitioner/try")  # fmt: skip
    else:
        user = User(name=f"try:{args.patient}", password_hash="", role="patient", fhir_user=f"Patient/{args.patient}")
    await authority.credentials.put_user(user, replace=True)
    return user
