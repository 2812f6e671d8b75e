"""The login pages: one language from the first page to the last, and a way back to the app from each."""

from __future__ import annotations

import httpx
import pytest

from fhir_server.auth.grants import challenge_of
from fhir_server.http.smart.words import KINDS, WORDS, in_words, language
from fhir_server.model.definitions import RESOURCE_TYPES
from tests.auth.conftest import PASSWORD, REDIRECT, Browser, Site

pytestmark = pytest.mark.anyio


async def test_the_language_an_app_asks_for_stays(browser: Browser) -> None:
    browser.http.headers["accept-language"] = "en"
    await browser.authorize("doctor", scope="launch/patient patient/*.rs", patient="p2", ui_locales="zh-CN")
    assert len(browser.pages) == 3
    assert all('<html lang="zh-CN">' in page for page in browser.pages)


async def first_page(site: Site, http: httpx.AsyncClient, **more: str) -> httpx.Response:
    asked = {"response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "state": "s", "aud": site.url,
             "scope": "launch/patient patient/*.rs", "code_challenge": challenge_of("v" * 43),
             "code_challenge_method": "S256"}  # fmt: skip
    return await http.get(f"{site.auth}/authorize", params={**asked, **more}, follow_redirects=True)


async def test_a_refusal_after_login_may_leave_for_the_app(site: Site, http: httpx.AsyncClient) -> None:
    """Browsers hold the redirects after a form to `form-action`, and a login may end in access_denied."""
    page = await first_page(site, http)
    assert "form-action 'self' https://app.example.org;" in page.headers["content-security-policy"]
    form = {"request": page.url.params["request"], "name": "stranger", "password": PASSWORD}
    went = await http.post(f"{site.auth}/login", data=form)
    end = await http.get(went.headers["location"])
    assert end.headers["location"].startswith(f"{REDIRECT}?error=access_denied")


async def test_a_wrong_password_is_told_in_the_same_language(site: Site, http: httpx.AsyncClient) -> None:
    page = await first_page(site, http, ui_locales="zh")
    form = {"request": page.url.params["request"], "ui_locales": "zh", "name": "ann", "password": "wrong"}
    again = await http.post(f"{site.auth}/login", data=form)
    assert again.status_code == 401
    assert "用户名或密码不正确" in again.text
    assert "<title>出错：登录</title>" in again.text
    assert again.text.count('aria-describedby="problem"') == 2
    assert "form-action 'self' https://app.example.org;" in again.headers["content-security-policy"]


async def enter(site: Site, http: httpx.AsyncClient, page: httpx.Response, user: str) -> httpx.Response:
    form = {"request": page.url.params["request"], "name": user, "password": PASSWORD}
    return await http.post(f"{site.auth}/login", data=form, follow_redirects=True)


async def pick(site: Site, http: httpx.AsyncClient, page: httpx.Response, patient: str) -> httpx.Response:
    form = {"request": page.url.params["request"], "patient": patient}
    return await http.post(f"{site.auth}/patient", data=form, follow_redirects=True)


async def allow(site: Site, http: httpx.AsyncClient, page: httpx.Response, *scopes: str) -> httpx.Response:
    form = {"request": page.url.params["request"], "answer": "allow", "scope": scopes}
    return await http.post(f"{site.auth}/consent", data=form)


async def test_one_users_choice_is_not_shown_to_the_next(site: Site, http: httpx.AsyncClient) -> None:
    """Neither after "log in as somebody else", nor if the session just ended."""
    for leave in (True, False):
        page = await pick(site, http, await enter(site, http, await first_page(site, http), "doctor"), "p2")
        assert "Bo Chen" in page.text
        if leave:
            page = await http.get(f"{site.auth}/logout", params=page.url.params, follow_redirects=True)
        else:
            http.cookies.delete("fhir-session")
        page = await enter(site, http, page, "ann")
        assert "<strong>Ann Lee</strong>" in page.text
        went = await allow(site, http, page, "launch/patient", "patient/*.rs")
        code = httpx.URL(went.headers["location"]).params["code"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "client_id": "app",
                "code_verifier": "v" * 43}  # fmt: skip
        assert (await http.post(f"{site.auth}/token", data=form)).json()["patient"] == "p1"
        http.cookies.clear()


async def test_a_wrong_patient_can_be_changed_and_takes_the_visit_along(site: Site, http: httpx.AsyncClient) -> None:
    page = await enter(site, http, await first_page(site, http, scope="launch/encounter patient/*.rs"), "doctor")
    assert "Choose another patient" not in page.text
    page = await pick(site, http, page, "p3")
    form = {"request": page.url.params["request"], "visit": "e10"}
    page = await http.post(f"{site.auth}/visit", data=form, follow_redirects=True)
    assert "Cy Diaz" in page.text and "Choose another patient" in page.text
    page = await http.get(page.url.copy_add_param("choose", "patient"))
    assert "Bo Chen" in page.text and "Choose another patient" not in page.text
    page = await pick(site, http, page, "p2")
    assert "Choose a visit" in page.text and 'value="e9"' in page.text and 'value="e10"' not in page.text


async def test_who_has_no_patient_can_let_somebody_else_log_in(site: Site, http: httpx.AsyncClient) -> None:
    page = await enter(site, http, await first_page(site, http), "doctor")
    page = await http.get(page.url.copy_add_param("q", "nobody of this name"))
    assert "No patient found" in page.text and "Log in as somebody else" in page.text
    http.cookies.clear()
    form = {"request": (await first_page(site, http)).url.params["request"], "name": "stranger", "password": PASSWORD}
    went = await http.post(f"{site.auth}/login", data=form)
    refused = await http.get(went.headers["location"])
    assert "error=access_denied" in refused.headers["location"]
    assert "<h1>Log in</h1>" in (await first_page(site, http)).text


async def test_no_page_may_be_read_by_another_origin(site: Site, http: httpx.AsyncClient) -> None:
    for name in ("authorize", "login", "continue", "patient", "visit", "consent", "logout"):
        answer = await http.post(f"{site.auth}/{name}", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers, name


async def test_a_button_pressed_twice_leads_to_the_app(site: Site, http: httpx.AsyncClient) -> None:
    """The browser leaves the first answer for that of the second press. Nothing else can be done with the request."""
    page = await enter(site, http, await first_page(site, http), "ann")
    for _ in range(2):
        went = await allow(site, http, page, "launch/patient", "patient/*.rs")
        assert went.headers["location"].startswith(f"{REDIRECT}?code=")
    form = {"request": page.url.params["request"], "answer": "deny"}
    assert (await http.post(f"{site.auth}/consent", data=form)).status_code == 400
    assert (await http.get(page.url)).status_code == 400
    assert (await pick(site, http, page, "p1")).status_code == 400
    site.now.ahead += 31
    assert (await allow(site, http, page, "launch/patient", "patient/*.rs")).status_code == 400
    page = await first_page(site, http)
    form["request"] = page.url.params["request"]
    for _ in range(2):
        went = await http.post(f"{site.auth}/consent", data=form)
        assert went.headers["location"].startswith(f"{REDIRECT}?error=access_denied")
    assert (await allow(site, http, page, "launch/patient", "patient/*.rs")).status_code == 400


async def test_the_language_stays_when_something_goes_wrong(site: Site, http: httpx.AsyncClient) -> None:
    page = await first_page(site, http, ui_locales="zh-CN")
    form = {"request": page.url.params["request"], "ui_locales": "zh-CN"}
    for step in ("patient", "visit", "consent"):  # the session has ended
        again = await http.post(f"{site.auth}/{step}", data={**form, "answer": "allow"}, follow_redirects=True)
        assert "<h1>登录</h1>" in again.text, step
    expired = await http.post(f"{site.auth}/login", data={**form, "request": "none"})
    assert expired.status_code == 400
    assert "此次登录已过期" in expired.text and "This login" not in expired.text
    unknown = await first_page(site, http, client_id="none", ui_locales="zh-CN")
    assert "此应用未在本服务器注册" in unknown.text


def test_scopes_are_told_in_words_of_one_language() -> None:
    assert in_words("patient/Observation.rs?category=vital-signs", "zh") == (
        "读取、搜索：该患者的测量和检查结果（仅限 category = vital-signs）"
    )
    assert in_words("user/*.r", "zh") == "读取：您可以看到的各类数据"
    assert in_words("patient/Observation.c", "en") == "add this patient's measurements and results"
    assert in_words("patient/VisionPrescription.r", "en") == "read this patient's VisionPrescription"
    assert all(WORDS["zh"].keys() == words.keys() for words in WORDS.values())
    assert KINDS.keys() <= RESOURCE_TYPES


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", "en"), ("zh", "zh"), ("fr zh-Hans en", "zh"), ("en-GB,zh;q=0.9", "en"), ("en;q=0.1, zh;q=0.9", "zh"),
        ("zh ; q=0.2 , en;q=0.7", "en"), ("zh;q=0", "en"), ("fr-CA", "en"), ("*", "en"), ("ZH-CN", "zh"), ("q=1;zh;;", "en"),
    ],
)  # fmt: skip
def test_the_language_that_weighs_most(accepted: str, chosen: str) -> None:
    assert language(accepted) == chosen
