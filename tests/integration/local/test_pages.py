"""The pages that `taskflux dev` shows to a person, in a real browser: at each width, in light and dark, by keyboard."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from starlette.applications import Starlette

from taskflux.cli.reference import static_document
from taskflux.http.openapi.document import documentation_routes, start_route
from taskflux.http.openapi.operations import ABOUT
from taskflux.local.ports import free_port
from taskflux.local.supervisor import Inbox
from tests.browser import WIDTHS, Browser, browser
from tests.integration.http.serving import served
from tests.integration.local.test_inbox import mail, send

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

LONG = "an-order-number-that-has-no-space-in-it-" * 6
TRACKER = "http://tracker.example/opened.gif"
HTML = f"""<!doctype html><meta name="color-scheme" content="light dark">
<style>@media (prefers-color-scheme: dark) {{ body {{ color: white; }} }}</style>
<img src="{TRACKER}"><table width="900"><tr><td>A table that is wider than a phone.</td></tr></table>
<a href="/livez">A link</a><p>{LONG}</p>"""
LETTER = "document.querySelector('.letter')"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def inbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Inbox]:
    """An inbox with two mails; the newer one, 2, has html."""
    directory = tmp_path_factory.mktemp("pages")
    async with Inbox(
        smtp_port=free_port(),
        http_port=free_port(),
        file=directory / "inbox.sqlite",
        log=directory / "inbox.log",
        environment=os.environ,
    ) as server:
        await send(server, mail("1@x", LONG), mail("2@x", "Your order " + LONG, html=HTML))
        yield server


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_inbox_fits_its_window_and_asks_no_other_host(
    inbox: Inbox, chromium: Browser, width: int, dark: bool
) -> None:
    async with chromium.page(f"{inbox.url}/", width, dark=dark) as page:
        assert await page.until("document.querySelectorAll('.row').length") == 2
        assert await page.overflow() == []
    async with chromium.page(f"{inbox.url}/#2", width, dark=dark, frame=True) as page:
        await page.until(LETTER)
        assert await page.overflow() == []
        assert page.complaints == []
        assert await page.evaluate_in_frame("document.images[0].complete")
        assert page.blocked == [TRACKER]
        assert f"{inbox.url}/api/messages/2/html" in page.requests.values()
        assert [url for url in page.requests.values() if not url.startswith((inbox.url, "data:"))] == []


@pytest.fixture
async def api() -> AsyncIterator[str]:
    """The address of an API's own pages."""
    start = start_route("TaskFlux", ABOUT, "http://127.0.0.1:8025")
    async with served(
        Starlette(routes=[start, *documentation_routes(lambda request: static_document().encode())])
    ) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_pages_of_the_api_fit_their_window_and_ask_no_other_host(
    api: str, chromium: Browser, width: int, dark: bool
) -> None:
    for path in ("/", "/docs", "/problems", "/problems/store-unavailable"):
        async with chromium.page(api + path, width, dark=dark) as page:
            await page.until("document.querySelector('h1') && !document.body.textContent.includes('Reading the')")
            assert await page.overflow() == [], path
            assert (page.complaints, page.blocked) == ([], []), path
            assert [url for url in page.requests.values() if not url.startswith((api, "data:"))] == [], path


async def test_the_links_of_the_start_page_are_reached_by_keyboard(api: str, chromium: Browser) -> None:
    async with chromium.page(f"{api}/", 360) as page:
        reached = []
        for _ in range(6):
            await page.press("Tab")
            reached.append(await page.evaluate("document.activeElement.getAttribute('href')"))
            assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert reached == ["/docs", "/problems", "http://127.0.0.1:8025", "/docs", "/openapi.json", "/problems"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_a_mail_with_a_dark_color_scheme_is_shown_dark_on_light(
    inbox: Inbox, chromium: Browser, dark: bool
) -> None:
    async with chromium.page(f"{inbox.url}/#2", 1280, dark=dark, frame=True) as page:
        await page.until(LETTER)
        assert await page.evaluate("getComputedStyle(document.querySelector('iframe')).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        assert await page.evaluate_in_frame("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


async def test_a_link_of_a_mail_opens_in_a_tab_of_its_own(inbox: Inbox, chromium: Browser) -> None:
    async with chromium.page(f"{inbox.url}/#2", 1280, frame=True) as page:
        await page.until(LETTER)
        await page.evaluate_in_frame("document.links[0].click()")
        await chromium.opens(f"{inbox.url}/livez")


async def test_on_a_phone_a_mail_is_opened_and_left_by_keyboard(inbox: Inbox, chromium: Browser) -> None:
    async with chromium.page(f"{inbox.url}/", 360) as page:
        await page.until("document.querySelector('.row')")
        await page.evaluate("document.getElementById('clear').focus()")
        await page.press("Tab")
        assert await page.evaluate("document.activeElement.dataset.id") == "2"
        await page.press("Enter")
        await page.until(LETTER)
        assert await page.evaluate("[location.hash, document.activeElement.id]") == ["#2", "back"]
        await page.press("Enter")
        await page.until("!" + LETTER)
        assert await page.evaluate("document.activeElement.dataset.id") == "2"
        await page.evaluate("history.back()")
        await page.until(LETTER)


async def test_a_missing_message_is_reported_as_missing(inbox: Inbox, chromium: Browser) -> None:
    async with chromium.page(f"{inbox.url}/#99", 1280) as page:
        text = await page.until("document.querySelector('#reader .quiet')?.textContent")
        assert text == "There is no such message in this inbox."
