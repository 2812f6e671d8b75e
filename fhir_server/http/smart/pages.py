"""The pages a person sees: log in, choose the patient (and the visit), consent. Plain HTML without scripts; each step is a form.

https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html#obtain-authorization-code
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import jinja2
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fhir_server.auth.authority import Authority
from fhir_server.auth.authorization import Refused, Request, Session
from fhir_server.auth.oauth import OAuthError, invalid_request, new_secret
from fhir_server.errors import FhirError, TooManyRequests
from fhir_server.http.smart import choices
from fhir_server.http.smart.wire import Endpoint, address_of, authority_of, form_pairs
from fhir_server.http.smart.words import WORDS, in_words, language, told
from fhir_server.store.credentials import Client

FOLDER = Path(__file__).parent / "templates"


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, auto_reload=False
    )


def page(request: HttpRequest, template: str, status: int = 200, /, *, leads_to: str = "", **values: Any) -> Response:
    """A page under a CSP that allows nothing but its style sheet and forms.

    Every form may lead to the app at once, with a code or a refusal, and browsers hold redirects to `form-action`, too.
    """
    lang = _language(request)
    auth = authority_of(request).auth_url
    html = (
        _templates()
        .get_template(template)
        .render(auth=auth, words=WORDS[lang], problem=values.pop("problem", ""), locales=_locales(request), **values)
    )
    parts = urlsplit(leads_to)
    target = f" {parts.scheme}://{parts.netloc}" if parts.netloc else f" {parts.scheme}:" if parts.scheme else ""
    policy = (
        f"default-src 'none'; style-src 'self'; form-action 'self'{target}; frame-ancestors 'none'; base-uri 'none'"
    )
    return HTMLResponse(
        html, status, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store", "Content-Language": lang}
    )


def shown(endpoint: Endpoint) -> Endpoint:
    """Errors as a page, or sent back to the app where that is safe."""

    async def answered(request: HttpRequest) -> Response:
        try:
            return await endpoint(request)
        except Refused as refused:
            return RedirectResponse(authority_of(request).authorizations.back(refused), 303)
        except OAuthError as error:
            return page(request, "problem.html", error.status, problem=told(error.description, _language(request)))
        except FhirError as error:
            response = page(request, "problem.html", error.status, problem=told(error.diagnostics, _language(request)))
            response.headers.update(error.headers)
            return response

    return answered


@shown
async def authorize(request: HttpRequest) -> Response:
    authority = authority_of(request)
    pairs = await _form(request) if request.method == "POST" else request.query_params.multi_items()
    browser = request.cookies.get(_name(authority, "browser")) or new_secret()
    wanted = await authority.authorizations.start(pairs, browser)
    session = await authority.authorizations.session(request.cookies.get(_name(authority, "session"), ""), wanted)
    if wanted.prompt == "none":
        error = OAuthError("login_required" if session is None else "consent_required", "The user has to be asked")
        raise authority.authorizations.refuse(wanted, error)
    response = _go_on(request, wanted)
    _set(authority, response, "browser", browser)
    return response


@shown
async def go_on(request: HttpRequest) -> Response:
    """The next step of a request: whatever is still missing."""
    authority = authority_of(request)
    wanted, client, session = await _where(request, request.query_params.get("request", ""))
    if session is None:
        to = wanted.redirect_uri
        return page(request, "login.html", leads_to=to, request_id=wanted.id, client=client, name="")
    chosen = bool(wanted.patient)  # by hand, so that there is a choice
    again = request.query_params.get("choose") == "patient"
    try:
        wanted = await authority.authorizations.settle_patient(wanted, session.user)
    except Refused:
        # With the session kept, every new start would end here, and nobody else could log in from this browser.
        await authority.authorizations.log_out(request.cookies.get(_name(authority, "session"), ""))
        raise
    about: dict[str, Any] = {"leads_to": wanted.redirect_uri, "request_id": wanted.id, "client": client}
    about["chosen"] = chosen and bool(wanted.patient) and not again
    if wanted.needs_patient and (not wanted.patient or (chosen and again)):
        query = request.query_params.get("q", "").strip()[:100]
        patients = await choices.patients(authority, session.user, query)
        more = len(patients) > choices.SHOWN
        return page(request, "patient.html", query=query, patients=patients[: choices.SHOWN], more=more, **about)
    if wanted.needs_visit:
        visits = await choices.visits(authority, session.user, wanted.patient)
        if visits:
            return page(request, "visit.html", visits=visits, **about)
    offered = await authority.authorizations.offered(wanted, session.user)
    lang = _language(request)
    scopes = [{"scope": scope, "words": in_words(scope, lang)} for scope in offered]
    patient = await choices.patient_name(authority, session.user, wanted.patient) if wanted.patient else ""
    user = session.user.display or session.user.name
    return page(request, "consent.html", scopes=scopes, patient=patient, user=user, **about)


@shown
async def login(request: HttpRequest) -> Response:
    authority = authority_of(request)
    values = dict(await _form(request))
    wanted, client, _ = await _where(request, values.get("request", ""))
    name, password = values.get("name", "").strip(), values.get("password", "")
    words = WORDS[_language(request)]
    shown_again: dict[str, Any] = {"request_id": wanted.id, "client": client, "name": name}
    shown_again["leads_to"] = wanted.redirect_uri
    try:
        began = await authority.logins.begin(address_of(request), name)
    except TooManyRequests as error:
        response = page(request, "login.html", 429, problem=words["too_many"], **shown_again)
        response.headers.update(error.headers)
        return response
    user = await authority.credentials.user(name)
    seen = {"subject": name, "client": client.id, "address": address_of(request)}
    right = await authority.passwords.matches(user.password_hash if user else "", password[:1024])
    if user is None or not right or user.disabled:
        authority.record("login", 401, user="", **seen)
        return page(request, "login.html", 401, problem=words["wrong"], **shown_again)
    await authority.logins.succeeded(address_of(request), name, began)
    authority.record("login", 200, user=user.fhir_user, **seen)
    response = _go_on(request, wanted)
    before = request.cookies.get(_name(authority, "session"), "")
    _set(authority, response, "session", await authority.authorizations.log_in(user, before))
    return response


@shown
async def patient(request: HttpRequest) -> Response:
    authority = authority_of(request)
    values = dict(await _form(request))
    wanted, _, session = await _where(request, values.get("request", ""))
    if session is None:
        return _go_on(request, wanted)
    chosen = values.get("patient", "")
    if not await choices.patients(authority, session.user, id=chosen):
        raise authority.authorizations.out_of_reach(wanted)
    wanted = await authority.authorizations.choose_patient(wanted, session.user, chosen)
    return _go_on(request, wanted)


@shown
async def visit(request: HttpRequest) -> Response:
    authority = authority_of(request)
    values = dict(await _form(request))
    wanted, _, session = await _where(request, values.get("request", ""))
    if session is None:
        return _go_on(request, wanted)
    wanted = await authority.authorizations.settle_patient(wanted, session.user)
    if not wanted.patient or not wanted.needs_visit:
        return _go_on(request, wanted)
    chosen = values.get("visit", "")
    if chosen and chosen not in {one["id"] for one in await choices.visits(authority, session.user, wanted.patient)}:
        raise authority.authorizations.out_of_reach(wanted)
    wanted = await authority.authorizations.choose_visit(wanted, session.user, chosen)
    return _go_on(request, wanted)


@shown
async def consent(request: HttpRequest) -> Response:
    authority = authority_of(request)
    pairs = await _form(request)
    values = dict(pairs)
    answer = "allow" if values.get("answer") == "allow" else "deny"
    wanted, client, session = await _where(request, values.get("request", ""), answer=answer)
    if session is None:
        return _go_on(request, wanted)
    if answer == "deny":
        return RedirectResponse(await authority.authorizations.deny(wanted), 303)
    kept = [value for name, value in pairs if name == "scope"]
    return RedirectResponse(await authority.authorizations.allow(wanted, client, session, kept), 303)


@shown
async def logout(request: HttpRequest) -> Response:
    """Ends the session; only for a request of this browser, so that another site's link logs nobody out."""
    authority = authority_of(request)
    wanted, client, session = await _where(request, request.query_params.get("request", ""))
    if session is not None:
        who = {"subject": session.user.name, "user": session.user.fhir_user, "client": client.id}
        authority.record("logout", 200, address=address_of(request), **who)
    await authority.authorizations.log_out(request.cookies.get(_name(authority, "session"), ""))
    response = _go_on(request, wanted)
    _drop(authority, response, "session")
    return response


async def style(request: HttpRequest) -> Response:
    return Response(
        (FOLDER / "style.css").read_bytes(), media_type="text/css", headers={"Cache-Control": "max-age=3600"}
    )


async def _where(request: HttpRequest, id: str, *, answer: str = "") -> tuple[Request, Client, Session | None]:
    authority = authority_of(request)
    browser = request.cookies.get(_name(authority, "browser"), "")
    if not id or not browser:
        raise invalid_request("This login has expired or was begun in another browser; start again from the app")
    wanted, client = await authority.authorizations.find(id, browser, answer=answer)
    session = await authority.authorizations.session(request.cookies.get(_name(authority, "session"), ""), wanted)
    return wanted, client, session


async def _form(request: HttpRequest) -> list[tuple[str, str]]:
    pairs = await form_pairs(request)
    request.state.locales = dict(pairs).get("ui_locales", "")
    return pairs


def _locales(request: HttpRequest) -> str:
    """What the app asked for, which every form and link carries on."""
    return str(getattr(request.state, "locales", "") or request.query_params.get("ui_locales", ""))


def _language(request: HttpRequest) -> str:
    return language(_locales(request) or request.headers.get("accept-language", ""))


def _go_on(request: HttpRequest, wanted: Request) -> Response:
    values = {"request": wanted.id} | ({"ui_locales": _locales(request)} if _locales(request) else {})
    return RedirectResponse(f"{authority_of(request).auth_url}/continue?{urlencode(values)}", 303)


def _name(authority: Authority, kind: str) -> str:
    """With TLS the browser itself guarantees that no subdomain and no plain page set the cookie."""
    return f"__Secure-fhir-{kind}" if authority.base.startswith("https:") else f"fhir-{kind}"


def _set(authority: Authority, response: Response, kind: str, value: str) -> None:
    secure = authority.base.startswith("https:")
    response.set_cookie(
        _name(authority, kind), value, path=_path(authority), httponly=True, secure=secure, samesite="lax"
    )


def _drop(authority: Authority, response: Response, kind: str) -> None:
    secure = authority.base.startswith("https:")
    response.delete_cookie(_name(authority, kind), path=_path(authority), httponly=True, secure=secure, samesite="lax")


def _path(authority: Authority) -> str:
    return urlsplit(authority.auth_url).path
