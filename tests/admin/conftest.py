"""Visitors of the console: operators with and without rights, and real browsers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from playwright.sync_api import Browser, ConsoleMessage, Page

from tests.admin.browser import CHROMIUM, chromium


@pytest.fixture
def operator(db: None) -> Callable[..., Client]:
    """A member of the staff, logged in, who may do what these permissions say: `operator("change_job")`."""

    def make(*permissions: str, name: str = "operator") -> Client:
        user = User.objects.create_user(name, is_staff=True)
        found = Permission.objects.filter(content_type__app_label="dj_queue", codename__in=permissions)
        assert len(found) == len(permissions)
        user.user_permissions.set(found)
        client = Client()
        client.force_login(user)
        return client

    return make


# Not for the session: while Playwright runs, its event loop does, and what else a process tests may want one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with chromium() as running:
        yield running


class Visitor:
    """A superuser at a browser, and what the browser complained about."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def visit(self, path: str = "") -> Page:
        """Open a page of the dashboard, or with a slash in front, of the site."""
        path = path if path.startswith("/") else f"/admin/dj_queue/dashboard/{path}"
        self.page.goto(self.address + path)
        return self.page

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.text} ({message.location})")


@pytest.fixture
def visitor(browser: Browser, live_server: Any) -> Iterator[Callable[..., Visitor]]:
    """Open a browser, logged in: `visitor(timezone_id="Asia/Tokyo")`. Fails if it complains in its console."""
    opened: list[Visitor] = []

    def open_one(*, name: str = "admin", **options: Any) -> Visitor:
        user = User.objects.filter(username=name).first() or User.objects.create_superuser(name)
        client = Client()
        client.force_login(user)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": live_server.url}])
        context.set_default_timeout(20_000)
        # Chromium asks every site for one, and would complain that this has none.
        context.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        opened.append(Visitor(context.new_page(), live_server.url))
        return opened[-1]

    yield open_one
    for each in opened:
        each.page.context.close()
    assert [complaint for each in opened for complaint in each.complaints] == []
