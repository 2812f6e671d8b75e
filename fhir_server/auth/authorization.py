"""One authorization request, from the app's redirect to the code: check, log in, choose the patient, consent.

https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html; nothing here knows HTTP, `http/smart` shows the pages.

The request waits in the database under an unguessable id, bound to the browser that started it by a cookie's hash: a form
posted by another browser (or by another site) does not find it. Until client and redirect URI are known to be right,
errors are shown and not sent anywhere (RFC 6749 4.1.2.1): no open redirect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

from fhir_server.auth.grants import Grants
from fhir_server.auth.oauth import OAuthError, digest, invalid_request, invalid_scope, new_secret
from fhir_server.auth.reach import Reach
from fhir_server.auth.scopes import Scope, granted, resource_scopes, split
from fhir_server.store.credentials import Client, Credentials, Grant, Passing, User

REQUEST_SECONDS = 600
AGAIN_SECONDS = 30  # a slow answer makes people press a button twice, and only the last press leads the browser on
LAUNCH_SECONDS = 300
SESSION_SECONDS = 8 * 3600
_CHALLENGE = re.compile(r"[A-Za-z0-9\-_]{43}")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


class Refused(OAuthError):
    """An error that goes back to the app."""

    def __init__(self, error: OAuthError, redirect_uri: str, state: str) -> None:
        super().__init__(error.error, error.description)
        self.redirect_uri = redirect_uri
        self.state = state


@dataclass(frozen=True, slots=True)
class Request:
    """What the app asked for. `scopes` is already cut to what the client may ever have."""

    id: str
    client_id: str
    redirect_uri: str
    scopes: tuple[str, ...]
    state: str
    challenge: str
    nonce: str = ""
    launch: Mapping[str, Any] | None = None
    patient: str = ""
    encounter: str = ""
    prompt: str = ""
    since: float = 0.0  # a login before this does not count
    browser: str = ""  # hash of the cookie
    visit_asked: bool = False
    chosen_by: str = ""  # whose choice patient and encounter are
    answered: str = ""  # allow or deny

    @property
    def needs_patient(self) -> bool:
        contexts = {"launch/patient", "launch/encounter"} & set(self.scopes)
        return bool(contexts) or any(scope.context == "patient" for scope in resource_scopes(self.scopes))

    @property
    def needs_visit(self) -> bool:
        """To be asked for a visit: the app wants one, no EHR has said which, and the user has not yet answered."""
        return "launch/encounter" in self.scopes and self.launch is None and not self.visit_asked


@dataclass(frozen=True, slots=True)
class Session:
    user: User
    hash: str
    auth_time: float


class Authorizations:
    def __init__(
        self,
        credentials: Credentials,
        grants: Grants,
        reach: Reach,
        *,
        issuer: str,
        audience: str,
        now: Callable[[], float],
    ) -> None:
        self._credentials = credentials
        self._grants = grants
        self._reach = reach
        self._issuer = issuer
        self._audience = audience
        self._now = now

    # The request

    async def start(self, pairs: Sequence[tuple[str, str]], browser: str) -> Request:
        """Checks an authorization request and keeps it. Raises OAuthError (to be shown) or Refused (to be sent back)."""
        pairs = [(name, value) for name, value in pairs if value]  # without a value: omitted (RFC 6749 3.1)
        given = dict(pairs)
        if len(given) != len(pairs):
            raise invalid_request("A parameter of the authorization request occurs twice")
        client = await self._credentials.client(given.get("client_id", ""))
        if client is None:
            raise OAuthError("invalid_client", "This app is not registered here")
        redirect_uri = given.get("redirect_uri", "")
        if redirect_uri not in client.redirect_uris:
            raise invalid_request("The app's redirect_uri is not one it is registered with")
        try:
            request = await self._check(client, given, browser)
        except OAuthError as error:
            raise Refused(error, redirect_uri, given.get("state", "")) from None
        await self._keep(request)
        return request

    async def _check(self, client: Client, given: Mapping[str, str], browser: str) -> Request:
        if given.get("response_type") != "code":
            raise OAuthError("unsupported_response_type", "response_type must be code")
        if "authorization_code" not in client.grant_types:
            raise OAuthError("unauthorized_client", "The client is not registered for authorization_code")
        if not given.get("state"):
            raise invalid_request("state is missing")
        if given.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(given.get("code_challenge", "")):
            raise invalid_request("PKCE is needed: code_challenge with code_challenge_method=S256")
        if not _same_base(given.get("aud", ""), self._audience):
            raise invalid_request(f"aud must be {self._audience}")
        if given.get("response_mode", "query") != "query":
            raise invalid_request("response_mode must be query")
        if "request" in given or "request_uri" in given:
            raise OAuthError("request_not_supported", "Request objects are not supported")
        scopes = [s for s in granted(split(given.get("scope", "")), client.scopes) if not s.startswith("system/")]
        if not scopes:
            raise invalid_scope("None of the scopes asked for may be given to this client")
        launch = None
        if given.get("launch"):
            item = await self._credentials.take_passing("launch", digest(given["launch"]), int(self._now()))
            if item is None or item.content.get("client_id") not in ("", None, client.id):
                raise invalid_request("launch is not known, was used before or has expired")
            launch = item.content
        elif "launch" in scopes:
            scopes.remove("launch")
        return Request(
            id=new_secret(),
            client_id=client.id,
            redirect_uri=given["redirect_uri"],
            scopes=tuple(scopes),
            state=given["state"],
            challenge=given["code_challenge"],
            nonce=given.get("nonce", ""),
            launch=launch,
            prompt=given.get("prompt", ""),
            since=self._since(given),
            browser=digest(browser),
        )

    def _since(self, given: Mapping[str, str]) -> float:
        """From when on a login counts. https://openid.net/specs/openid-connect-core-1_0.html#AuthRequest"""
        prompt, age = split(given.get("prompt", "")), given.get("max_age", "")
        if "none" in prompt and len(prompt) > 1:
            raise invalid_request("prompt=none does not go with other values")
        if age and not re.fullmatch(r"[0-9]{1,9}", age):
            raise invalid_request("max_age must be a number of seconds")
        if "login" in prompt:
            return self._now()
        return self._now() - int(age) if age else 0.0

    async def find(self, id: str, browser: str, *, answer: str = "") -> tuple[Request, Client]:
        """The kept request, for the browser that started it. `answer` may repeat what was answered. Raises OAuthError."""
        item = await self._credentials.passing_item("request", digest(id), int(self._now()))
        if (
            item is None
            or item.content["browser"] != digest(browser)
            or item.content.get("answered", "") not in ("", answer)
        ):
            raise invalid_request("This login has expired or was begun in another browser; start again from the app")
        request = Request(**{**item.content, "id": id, "scopes": tuple(item.content["scopes"])})
        client = await self._credentials.client(request.client_id)
        if client is None:
            raise OAuthError("invalid_client", "This app is not registered here")
        return request, client

    async def _keep(self, request: Request, seconds: int = REQUEST_SECONDS) -> None:
        content = {name: getattr(request, name) for name in Request.__slots__ if name != "id"}
        expires = int(self._now()) + seconds
        kept = Passing(id=digest(request.id), kind="request", expires=expires, content=content)
        await self._credentials.put_passing(kept)

    # Sessions

    async def log_in(self, user: User, before: str = "") -> str:
        """A new session (never one the browser brought along: no fixation); the value of its cookie.

        `before` is the cookie of the one whose place it takes: what was granted in one's own goes on, another user's ends.
        """
        cookie = new_secret()
        now = self._now()
        content = {"user": user.name, "auth_time": now}
        await self._credentials.put_passing(
            Passing(id=digest(cookie), kind="session", expires=int(now) + SESSION_SECONDS, content=content)
        )
        left = await self.session(before)
        if left is not None and left.user.name == user.name:
            await self._credentials.hand_over_session(left.hash, digest(cookie))
        await self.log_out(before)
        return cookie

    async def session(self, cookie: str, request: Request | None = None) -> Session | None:
        """Who is logged in; for a request, if it takes this login or asks for a fresh one."""
        if not cookie:
            return None
        item = await self._credentials.passing_item("session", digest(cookie), int(self._now()))
        user = await self._credentials.user(item.content["user"]) if item else None
        if item is None or user is None or user.disabled:
            return None
        session = Session(user, item.id, float(item.content["auth_time"]))
        return session if request is None or session.auth_time >= request.since else None

    async def log_out(self, cookie: str) -> None:
        item = await self._credentials.take_passing("session", digest(cookie), int(self._now()))
        if item is not None:
            await self._grants.end_session(item.id)

    # Choosing and consenting

    async def offered(self, request: Request, user: User) -> tuple[str, ...]:
        """The scopes that make sense for this user: a lab only creates; the rest is the policy's to narrow."""
        scopes = [scope for scope in request.scopes if scope != "launch/encounter" or request.encounter]
        if user.role != "lab":
            return tuple(scopes)
        most = [*(s for s in scopes if "/" not in s), "user/*.c", "patient/*.c", "launch/patient"]
        return tuple(granted(scopes, most))

    async def patients(self, user: User) -> frozenset[str] | None:
        """Whom the user may choose; None: everybody (but `excluded`)."""
        return (await self._reach.of(user)).patients

    async def may_choose(self, user: User, patient: str) -> bool:
        view = await self._reach.of(user)
        in_reach = view.patients is None or patient in view.patients
        return bool(_ID.fullmatch(patient)) and in_reach and patient not in view.excluded

    async def settle_patient(self, request: Request, user: User) -> Request:
        """Fills in the patient where there is no choice. Raises Refused where there is none to be had."""
        if request.chosen_by not in ("", user.name):  # somebody else was logged in in this browser
            request = _without_choice(request)
        if request.launch is not None:
            launched_by = request.launch.get("user")
            patient = str(request.launch.get("patient") or "")
            if (launched_by and launched_by != user.name) or (patient and not await self.may_choose(user, patient)):
                raise self.refuse(request, OAuthError("access_denied", "The launch is not for this user"))
            if patient or not request.patient:  # an EHR may leave the choice to the user; its visit is of its patient
                request = replace(request, patient=patient, encounter=str(request.launch.get("encounter") or ""))
        elif request.patient and not await self.may_choose(user, request.patient):
            request = _without_choice(request)
        if request.patient or not request.needs_patient:
            return request
        patients = await self.patients(user)
        if patients is None:
            return request
        patients = frozenset([id for id in patients if await self.may_choose(user, id)])
        if not patients:
            raise self.refuse(request, OAuthError("access_denied", "The user has no patient to choose"))
        return replace(request, patient=next(iter(patients))) if len(patients) == 1 else request

    async def choose_patient(self, request: Request, user: User, patient: str) -> Request:
        if not await self.may_choose(user, patient):
            raise self.out_of_reach(request)
        # A visit that was chosen before is another patient's.
        request = replace(request, patient=patient, encounter="", visit_asked=False, chosen_by=user.name)
        await self._keep(request)
        return request

    async def choose_visit(self, request: Request, user: User, encounter: str) -> Request:
        """Of the request's patient; empty for none. The caller has made sure that the user may see it."""
        request = replace(request, encounter=encounter, visit_asked=True, chosen_by=user.name)
        await self._keep(request)
        return request

    def out_of_reach(self, request: Request) -> Refused:
        """The same words whether it is there or not."""
        return self.refuse(request, OAuthError("access_denied", "The user may not see what was chosen"))

    async def allow(self, request: Request, client: Client, session: Session, kept: Sequence[str]) -> str:
        """The user consents to these of the offered scopes: where to send the browser, with a code of this press."""
        await self._answered(request, "allow")
        request = await self.settle_patient(request, session.user)
        scopes = [scope for scope in await self.offered(request, session.user) if scope in kept]
        if not scopes:
            raise self.refuse(request, OAuthError("access_denied", "The user allowed nothing"))
        if request.needs_patient and not request.patient:
            raise self.refuse(request, OAuthError("access_denied", "No patient was chosen"))
        now = int(self._now())
        launch = (request.launch or {}) if "launch" in scopes else {}
        with_encounter = bool({"launch", "launch/encounter"} & set(scopes))
        with_patient = with_encounter or "launch/patient" in scopes or any(s.startswith("patient/") for s in scopes)
        grant = Grant(
            id=new_secret(16),
            client_id=client.id,
            subject=session.user.name,
            scopes=tuple(scopes),
            patient=(request.patient or None) if with_patient else None,
            encounter=(request.encounter or None) if with_encounter else None,
            fhir_context=tuple(launch.get("fhirContext") or ()),
            fhir_user=session.user.fhir_user,
            nonce=request.nonce,
            session=session.hash,
            auth_time=int(session.auth_time),
            created=now,
            expires=now + self._grants.lifetime(scopes),
            intent=str(launch.get("intent") or ""),
            need_patient_banner=bool(launch.get("need_patient_banner", True)),
        )
        code = await self._grants.code(grant, request.redirect_uri, request.challenge)
        return self._back(request.redirect_uri, {"code": code, "state": request.state})

    async def deny(self, request: Request) -> str:
        await self._answered(request, "deny")
        return self.back(self.refuse(request, OAuthError("access_denied", "The user did not allow it")))

    async def _answered(self, request: Request, answer: str) -> None:
        """The request is over, but for the same answer again."""
        if not request.answered:
            await self._keep(replace(request, answered=answer), AGAIN_SECONDS)

    def refuse(self, request: Request, error: OAuthError) -> Refused:
        return Refused(error, request.redirect_uri, request.state)

    def back(self, refused: Refused) -> str:
        """Where an error goes."""
        answer = {"error": refused.error, "error_description": refused.description}
        if refused.state:
            answer["state"] = refused.state
        return self._back(refused.redirect_uri, answer)

    def _back(self, redirect_uri: str, answer: Mapping[str, str]) -> str:
        mark = "&" if urlsplit(redirect_uri).query else "?"
        return f"{redirect_uri}{mark}{urlencode({**answer, 'iss': self._issuer})}"

    # EHR launch

    async def launch(self, *, user: str, client_id: str, context: Mapping[str, Any]) -> str:
        """A value for the `launch` parameter: once, within five minutes, for that user and client if they are named.

        `context`: patient, encounter, fhirContext, intent, need_patient_banner.
        """
        handle = new_secret()
        expires = int(self._now()) + LAUNCH_SECONDS
        content = {**context, "user": user, "client_id": client_id}
        await self._credentials.put_passing(Passing(id=digest(handle), kind="launch", expires=expires, content=content))
        return handle


def _without_choice(request: Request) -> Request:
    return replace(request, patient="", encounter="", visit_asked=False, chosen_by="")


def _same_base(aud: str, base: str) -> bool:
    """On one's own machine `localhost` and `127.0.0.1` are the same server."""
    return aud.rstrip("/").replace("//localhost:", "//127.0.0.1:", 1) == base.replace("//localhost:", "//127.0.0.1:", 1)


def described(scope: str) -> Scope | None:
    """The resource scope in the text, for putting it into words."""
    try:
        return Scope.parse(scope)
    except ValueError:
        return None
