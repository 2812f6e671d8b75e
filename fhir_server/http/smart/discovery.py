"""What apps read first: SMART configuration, OpenID discovery, the public keys.

https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fhir_server.auth.authority import Authority
from fhir_server.auth.clients import ASSERTION_ALGORITHMS
from fhir_server.auth.keys import ALGORITHM
from fhir_server.http.smart.wire import authority_of, oauth

CAPABILITIES = (
    "launch-ehr",
    "launch-standalone",
    "authorize-post",
    "client-public",
    "client-confidential-symmetric",
    "client-confidential-asymmetric",
    "sso-openid-connect",
    "context-banner",
    "context-ehr-patient",
    "context-ehr-encounter",
    "context-standalone-encounter",
    "context-standalone-patient",
    "permission-offline",
    "permission-online",
    "permission-patient",
    "permission-user",
    "permission-v1",
    "permission-v2",
)
SCOPES = (
    "openid",
    "fhirUser",
    "profile",
    "launch",
    "launch/patient",
    "launch/encounter",
    "offline_access",
    "online_access",
    "patient/*.cruds",
    "user/*.cruds",
    "system/*.cruds",
)
WAYS = ("client_secret_basic", "client_secret_post", "private_key_jwt")


# Of an external issuer: what the FHIR base does itself, what else its document may name, and what follows from that.
ENFORCED = ("permission-patient", "permission-user", "permission-v1", "permission-v2")
ALSO = ("registration_endpoint", "management_endpoint")
FOLLOWS = (
    ("code_challenge_methods_supported", "S256", ("client-public",)),
    ("token_endpoint_auth_methods_supported", "client_secret_basic", ("client-confidential-symmetric",)),
    ("token_endpoint_auth_methods_supported", "private_key_jwt", ("client-confidential-asymmetric",)),
    ("scopes_supported", "openid", ("sso-openid-connect",)),
    ("scopes_supported", "offline_access", ("permission-offline",)),
    ("scopes_supported", "online_access", ("permission-online",)),
    ("scopes_supported", "launch", ("launch-ehr", "context-ehr-patient")),
    ("scopes_supported", "launch/patient", ("launch-standalone", "context-standalone-patient")),
)


def _told(theirs: Mapping[str, Any]) -> list[str]:
    return [name for where, what, names in FOLLOWS if what in (theirs.get(where) or ()) for name in names]


def configuration(authority: Authority) -> dict[str, Any]:
    auth = authority.auth_url
    answer: dict[str, Any] = {
        "issuer": authority.base,
        "jwks_uri": f"{auth}/jwks",
        "authorization_endpoint": f"{auth}/authorize",
        "token_endpoint": f"{auth}/token",
        "introspection_endpoint": f"{auth}/introspect",
        "revocation_endpoint": f"{auth}/revoke",
        "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none", *WAYS],
        "token_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        "introspection_endpoint_auth_methods_supported": list(WAYS),
        "introspection_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        "revocation_endpoint_auth_methods_supported": ["none", *WAYS],
        "revocation_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        "scopes_supported": list(SCOPES),
        "authorization_response_iss_parameter_supported": True,
    }
    if authority.settings.registration:
        answer["registration_endpoint"] = f"{auth}/register"
    return answer


@oauth
async def smart_configuration(request: Request) -> Response:
    """Ours; or where an external issuer lets people log in, that one's, as far as its own discovery document says it."""
    authority = authority_of(request)
    if authority.external is None:
        answer = {**configuration(authority), "capabilities": list(CAPABILITIES)}
    else:
        theirs = await authority.external.configuration()
        answer = {name: theirs[name] for name in configuration(authority) if name in theirs}
        answer |= {name: theirs[name] for name in ALSO if name in theirs}
        answer["capabilities"] = [*ENFORCED, *_told(theirs)]
    return JSONResponse(answer, headers={"Cache-Control": "max-age=300"})


async def openid_configuration(request: Request) -> Response:
    answer = {
        **configuration(authority_of(request)),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
        "claims_supported": ["sub", "iss", "aud", "exp", "iat", "auth_time", "nonce", "fhirUser"],
        "ui_locales_supported": ["en", "zh"],
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
    }
    return JSONResponse(answer, headers={"Cache-Control": "max-age=300"})


async def jwks(request: Request) -> Response:
    """Short-lived in caches, so that a rotation is seen before the first token of the new key expires."""
    return JSONResponse(await authority_of(request).keys.jwks(), headers={"Cache-Control": "max-age=60"})


def security(authority: Authority) -> dict[str, Any]:
    """CapabilityStatement.rest.security. https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html"""
    uris = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
    parts = [("authorize", "authorize"), ("token", "token"), ("introspect", "introspect"), ("revoke", "revoke")]
    ours = [{"url": uris, "extension": [{"url": n, "valueUri": f"{authority.auth_url}/{p}"} for n, p in parts]}]
    return {
        # An external issuer's are in the SMART configuration, which is asked for when it is needed.
        **({"extension": ours} if authority.external is None else {}),
        "cors": True,
        "service": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                        "code": "SMART-on-FHIR",
                    }
                ],
                "text": "OAuth2 using SMART-on-FHIR profile (see http://docs.smarthealthit.org)",
            }
        ],
    }
