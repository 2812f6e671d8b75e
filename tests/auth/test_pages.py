"""The login pages: one language from the first page to the last, and a way back to the app from each."""

from __future__ import annotations

import httpx
import pytest

from fhir_server.auth.grants import challenge_of
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
