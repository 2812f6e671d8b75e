"""`fhir-server user add|list|disable`: the people who log in. Passwords are kept as argon2id hashes."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace

from fhir_server.auth.authority import Authority
from fhir_server.auth.oauth import new_secret
from fhir_server.auth.principal import ROLES
from fhir_server.cli import authority as place
from fhir_server.errors import BadRequest
from fhir_server.store.credentials import User

KINDS = {"practitioner": "Practitioner", "lab": "", "patient": "Patient", "related-person": "RelatedPerson"}
SHORTEST_PASSWORD = 12


def configure(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    add = acts.add_parser("add", help="let somebody log in; prints a password once, unless one is given")
    add.add_argument("name", help="what is typed at login")
    add.add_argument("--role", required=True, choices=sorted(ROLES), help="what the user may do at most")
    add.add_argument("--fhir-user", default="", help="the user's own resource: Practitioner/1, Patient/7")
    add.add_argument("--reach", choices=["all", "care-team"], default="care-team", help="a practitioner's patients")
    add.add_argument("--clearance", choices=["N", "R", "V"], default="N", help="highest label the user may see")
    add.add_argument("--display", default="", help="the name that pages show")
    add.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    add.add_argument("--replace", action="store_true", help="if the name is taken, change that user")
    place.configure(add)
    place.configure(acts.add_parser("list", help="who may log in"))
    disable = acts.add_parser("disable", help="end a user's logins and tokens")
    disable.add_argument("name")
    place.configure(disable)


def run(args: argparse.Namespace) -> int:
    return place.with_authority(args, lambda authority: _ACTS[args.act](authority, args))


async def _add(authority: Authority, args: argparse.Namespace) -> int:
    wanted = KINDS.get(args.role, "")
    if wanted and not re.fullmatch(rf"{wanted}/[A-Za-z0-9\-.]{{1,64}}", args.fhir_user):
        raise BadRequest(f"A {args.role} needs --fhir-user {wanted}/ID")
    password = sys.stdin.readline().rstrip("\n") if args.password_stdin else new_secret(12)
    if len(password) < SHORTEST_PASSWORD:
        raise BadRequest(f"The password must have at least {SHORTEST_PASSWORD} characters")
    user = User(
        name=args.name,
        password_hash=await authority.passwords.hash(password),
        role=args.role,
        fhir_user=args.fhir_user,
        display=args.display,
        reach=args.reach if args.role == "practitioner" else "self",
        clearance=args.clearance,
        created=int(authority.now()),
    )
    if not await authority.credentials.put_user(user, replace=args.replace):
        raise BadRequest(f"There is a user {args.name!r}; --replace changes it")
    print(f"user     {user.name}")
    if not args.password_stdin:
        print(f"password {password}")
        print("The password is not kept in this form and cannot be shown again.", file=sys.stderr)
    return 0


async def _list(authority: Authority, args: argparse.Namespace) -> int:
    for user in await authority.credentials.all_users():
        state = "disabled" if user.disabled else "active"
        print(f"{user.name}\t{user.role}\t{user.reach}\t{user.fhir_user or '-'}\t{state}")
    return 0


async def _disable(authority: Authority, args: argparse.Namespace) -> int:
    user = await authority.credentials.user(args.name)
    if user is None:
        print(f"fhir-server: no user {args.name!r}", file=sys.stderr)
        return 1
    await authority.credentials.put_user(replace(user, disabled=True), replace=True)
    await authority.credentials.end_user(user.name)  # for good, also if the name may log in again some day
    return 0


_ACTS = {"add": _add, "list": _list, "disable": _disable}
