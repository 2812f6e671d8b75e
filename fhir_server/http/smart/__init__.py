"""SMART on FHIR's endpoints, below the FHIR base so that a proxy needs one rule: `routes` is the table.

The application's `state.authority` is the `auth.authority.Authority` they ask.
"""

from __future__ import annotations

from starlette.routing import Route

from fhir_server.http.smart import discovery, pages, token
from fhir_server.http.smart.bearer import Bearer, everybody
from fhir_server.http.smart.headers import Headers

__all__ = ["Bearer", "Headers", "everybody", "routes"]


def routes(base_path: str = "/fhir") -> list[Route]:
    """To stand before the FHIR base itself in the application's routes."""
    return [
        Route(f"{base_path}/.well-known/smart-configuration", discovery.smart_configuration, methods=["GET"]),
        Route(f"{base_path}/.well-known/openid-configuration", discovery.openid_configuration, methods=["GET"]),
        Route(f"{base_path}/auth/jwks", discovery.jwks, methods=["GET"]),
        Route(f"{base_path}/auth/token", token.token, methods=["POST"]),
        Route(f"{base_path}/auth/introspect", token.introspect, methods=["POST"]),
        Route(f"{base_path}/auth/revoke", token.revoke, methods=["POST"]),
        Route(f"{base_path}/auth/register", token.register, methods=["POST"]),
        Route(f"{base_path}/auth/launch", token.launch, methods=["POST"]),
        Route(f"{base_path}/auth/authorize", pages.authorize, methods=["GET", "POST"]),
        Route(f"{base_path}/auth/continue", pages.go_on, methods=["GET"]),
        Route(f"{base_path}/auth/login", pages.login, methods=["POST"]),
        Route(f"{base_path}/auth/patient", pages.patient, methods=["POST"]),
        Route(f"{base_path}/auth/visit", pages.visit, methods=["POST"]),
        Route(f"{base_path}/auth/consent", pages.consent, methods=["POST"]),
        Route(f"{base_path}/auth/logout", pages.logout, methods=["GET"]),
        Route(f"{base_path}/auth/style.css", pages.style, methods=["GET"]),
    ]
