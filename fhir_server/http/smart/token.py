"""The endpoints that apps call without a browser: token, introspect, revoke, register; and launch, which an EHR calls."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fhir_server.auth.authority import Authority
from fhir_server.auth.clients import check_redirect_uri
from fhir_server.auth.limits import place
from fhir_server.auth.oauth import OAuthError, invalid_request, new_secret
from fhir_server.auth.policy import Policy
from fhir_server.auth.principal import Principal
from fhir_server.auth.scopes import LAUNCH_SCOPES, granted, split
from fhir_server.errors import Forbidden
from fhir_server.http.smart.bearer import Bearer
from fhir_server.http.smart.wire import address_of, authority_of, form, oauth, read_body
from fhir_server.interactions.call import check_id
from fhir_server.store.credentials import Client, ClientKind

METHODS: dict[str, ClientKind] = {
    "none": "public",
    "client_secret_basic": "confidential-symmetric",
    "client_secret_post": "confidential-symmetric",
    "private_key_jwt": "confidential-asymmetric",
}


async def _client(request: Request, values: dict[str, str], *, public_allowed: bool) -> Client:
    """The client that calls, after the limits on how often it may try."""
    authority = authority_of(request)
    address = address_of(request)
    authority.token_rate.check(place(address))
    authorization = request.headers.get("authorization", "")
    await authority.logins.check(address)
    try:
        return await authority.clients.authenticate(values, authorization, public_allowed=public_allowed)
    except OAuthError as error:
        if error.error == "invalid_client":
            await authority.logins.failed(address)
        raise


@oauth
async def token(request: Request) -> Response:
    values = await form(request)
    client = await _client(request, values, public_allowed=True)
    return JSONResponse(await authority_of(request).grants.token(client, values))


@oauth
async def introspect(request: Request) -> Response:
    values = await form(request)
    client = await _client(request, values, public_allowed=False)
    if not values.get("token"):
        raise invalid_request("token is missing")
    return JSONResponse(await authority_of(request).grants.introspect(client, values["token"]))


@oauth
async def revoke(request: Request) -> Response:
    values = await form(request)
    client = await _client(request, values, public_allowed=True)
    if not values.get("token"):
        raise invalid_request("token is missing")
    await authority_of(request).grants.revoke(client, values["token"])
    return Response(status_code=200)


@oauth
async def register(request: Request) -> Response:
    """RFC 7591, only where the operator turned it on; never system/ scopes, never client credentials."""
    authority = authority_of(request)
    if not authority.settings.registration:
        raise OAuthError("access_denied", "Apps are registered by the operator of this server", 403)
    authority.token_rate.check(place(address_of(request)))
    asked = await _json(request)
    method = asked.get("token_endpoint_auth_method", "client_secret_basic")
    if method not in METHODS:
        raise _invalid("token_endpoint_auth_method is not one that is supported")
    uris = asked.get("redirect_uris")
    if not isinstance(uris, list) or not uris or not all(isinstance(uri, str) for uri in uris):
        raise _invalid("redirect_uris is missing")
    for uri in uris:
        check_redirect_uri(uri)
    most = [*LAUNCH_SCOPES, "patient/*.cruds", "user/*.cruds"]
    scopes = granted(split(str(asked.get("scope", ""))), most) or sorted(most)
    jwks, jwks_uri = asked.get("jwks"), asked.get("jwks_uri", "")
    if method == "private_key_jwt" and (not isinstance(jwks_uri, str) or bool(jwks_uri) == isinstance(jwks, dict)):
        raise _invalid("private_key_jwt needs either jwks or jwks_uri")
    client = Client(
        id=new_secret(16),
        name=str(asked.get("client_name", "") or "An app that registered itself")[:100],
        kind=METHODS[method],
        jwks=jwks if isinstance(jwks, dict) else None,
        jwks_uri=str(jwks_uri),
        redirect_uris=tuple(uris),
        scopes=tuple(scopes),
        created=int(authority.now()),
    )
    answer: dict[str, Any] = {
        "client_id": client.id,
        "client_id_issued_at": client.created,
        "client_name": client.name,
        "redirect_uris": uris,
        "grant_types": list(client.grant_types),
        "response_types": ["code"],
        "token_endpoint_auth_method": method,
        "scope": " ".join(scopes),
    }
    if client.kind == "confidential-symmetric":
        secret = new_secret()
        client = replace(client, secret_hash=await authority.passwords.hash(secret))
        answer |= {"client_secret": secret, "client_secret_expires_at": 0}
    await authority.credentials.put_client(client)
    return JSONResponse(answer, 201)


@oauth
async def launch(request: Request) -> Response:
    """An EHR, with its user's token, asks for a `launch` value for an app; what it may not read it cannot pass on."""
    authority = authority_of(request)
    principal = await Bearer(authority)(request.scope)
    asked = await _json(request)
    patient, encounter = str(asked.get("patient") or ""), str(asked.get("encounter") or "")
    related, banner = asked.get("fhirContext") or [], asked.get("need_patient_banner", True)
    if not isinstance(related, list) or not all(isinstance(one, dict) for one in related):
        raise invalid_request("fhirContext must be a list of objects")
    if not isinstance(banner, bool):
        raise invalid_request("need_patient_banner must be true or false")
    Policy().may(principal, "read", "Patient")
    if patient and not await _reads(authority, principal, "Patient", patient):
        raise Forbidden("The token does not reach this patient")
    about = [("patient", patient)] if patient else []
    if encounter and not await _reads(authority, principal, "Encounter", encounter, *about):
        raise Forbidden("The token does not reach this encounter, or it is not this patient's")
    context = {
        "patient": patient,
        "encounter": encounter,
        "fhirContext": related[:20],
        "intent": str(asked.get("intent") or ""),
        "need_patient_banner": banner,
    }
    user = principal.subject if principal.fhir_user else ""
    client_id = str(asked.get("client_id") or "")
    handle = await authority.authorizations.launch(user=user, client_id=client_id, context=context)
    client = await authority.credentials.client(client_id) if client_id else None
    answer = {"launch": handle, "iss": authority.base}
    if client is not None and client.launch_uri:
        answer["launch_uri"] = client.launch_uri
    return JSONResponse(answer, 201)


async def _reads(
    authority: Authority, principal: Principal, resource_type: str, id: str, *more: tuple[str, str]
) -> bool:
    """Whether it is there for this token: found as by a search, which reading alone suffices for here."""
    if authority.records is None:
        return False
    scopes = tuple(replace(one, permissions="rs") for one in principal.scopes if "r" in one.permissions)
    who = replace(principal, scopes=scopes)
    return bool(await authority.records.find(resource_type, ("_id", check_id(id)), *more, limit=1, seen_by=who))


async def _json(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await read_body(request))
        json.dumps(value, ensure_ascii=False).encode()  # half a character could not be stored
    except (ValueError, RecursionError):
        raise invalid_request("The body is not JSON") from None
    if not isinstance(value, dict):
        raise invalid_request("The body must be a JSON object")
    return value


def _invalid(description: str) -> OAuthError:
    return OAuthError("invalid_client_metadata", description)
