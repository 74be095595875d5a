"""Concurrency keys that are made of hidden arguments: on no page, in no address, count or answer."""

import json
from typing import Any

import pytest
from django.test import Client, RequestFactory
from django.utils import timezone

from dj_queue import key_masks, views
from dj_queue.models import Job, Semaphore
from tests.admin.records.conftest import Operator
from tests.project.secretive import by_function, by_token, log_in
from tests.project.tasks import one_per_key
from tests.working import claim

pytestmark = pytest.mark.django_db

SECRET = "tok-9f8e7d"
ROOT = "/admin/dj_queue/"


@pytest.fixture(autouse=True)
def known_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is nothing but a secret: of no other test's concern, as any key may be one then."""
    monkeypatch.setattr(by_token.func, "concurrency_key", "{token}", raising=False)
    monkeypatch.setattr(key_masks, "_known", None)


def semaphore(key: str) -> Semaphore:
    return Semaphore.objects.create(key=key, value=1, limit=1, expires_at=timezone.now())


def pages(client: Client) -> dict[str, str]:
    addresses = [f"{ROOT}dashboard/", f"{ROOT}semaphore/", f"{ROOT}semaphore/?q=login"]
    for row in Semaphore.objects.all():
        addresses += [f"{ROOT}semaphore/{row.pk}/{page}/" for page in ("change", "history")]
    addresses += [f"{ROOT}job/{job.pk}/change/" for job in Job.objects.all()]
    addresses += [
        f"{ROOT}dashboard/queue/default/?state={state}" for state in ("ready", "blocked") if Job.objects.exists()
    ]
    return {address: client.get(address).content.decode() for address in addresses}


def stats() -> list[str]:
    answer = json.loads(views.stats(RequestFactory().get("/")).content)
    return [each["key"] for each in answer["backends"][0]["semaphores"]]


@pytest.mark.parametrize("state", ["ready", "blocked", "claimed"])
@pytest.mark.parametrize("by", [log_in, by_token, by_function])
def test_keys_of_live_jobs(admin_client: Client, operator: Operator, by: Any, state: str) -> None:
    kwargs = {log_in: {"email": "ann@example.org", "api_token": SECRET}, by_token: {"token": SECRET}}
    for _ in range(2 if state == "blocked" else 1):
        by.enqueue(**kwargs.get(by, {"user": "ann", "password": SECRET}))
    if state == "claimed":
        claim(1)
    for client in (admin_client, operator()):
        found = pages(client)
        assert [address for address, html in found.items() if SECRET in html] == []
        assert key_masks.HIDDEN in found[f"{ROOT}semaphore/"]
        assert key_masks.HIDDEN in found[f"{ROOT}dashboard/"]
    if by is not by_function:  # which tells nothing of how it made the key
        assert SECRET not in stats()[0]


def test_keys_that_no_job_has_any_more(admin_client: Client) -> None:
    semaphore(f"login:ann@example.org:{SECRET}")
    assert [address for address, html in pages(admin_client).items() if SECRET in html] == []
    assert stats() == [f"login:ann@example.org:{key_masks.HIDDEN}"]


def test_what_is_not_hidden_is_shown(admin_client: Client) -> None:
    one_per_key.enqueue("account-7")
    assert stats() == ["one:account-7"]
    found = pages(admin_client)
    for path in ("semaphore/", "dashboard/"):
        assert "one:account-7" in found[f"{ROOT}{path}"]
    log_in.enqueue(email="ann@example.org", api_token=SECRET)
    assert "login:ann@example.org:" in pages(admin_client)[f"{ROOT}semaphore/"]


def test_a_search_does_not_tell_of_hidden_parts(admin_client: Client) -> None:
    log_in.enqueue(email="ann@example.org", api_token=SECRET)
    for text, count in (("login", 1), ("ann@", 1), (SECRET, 0), (SECRET[:5], 0), ("zzz", 0)):
        page = admin_client.get(f"{ROOT}semaphore/", {"q": text}).context["cl"]
        assert (len(page.result_list), page.found.count.number, page.found.count.more) == (count, count, False), text


@pytest.mark.parametrize(
    ("template", "key", "shown"),
    [
        ("login:{email}:{api_token}", "login:a:b", "login:a:#"),
        ("login:{email}:{api_token}", "login:a:b:c\nd", "login:a:#"),
        ("login:{email}:{api_token}", "logout:a:b", "logout:a:b"),
        ("{token}", "anything", "#"),
        ("x{token}y{secret[0]}z", "x1y2z", "x#y#z"),
        ("{a}{token!r}", "ab", "#"),
        ("t:{token:>10}:{b}", "t:  abc:9", "t:#:9"),
        ("{a}-{b}-{token}", "1-2-3", "1-2-#"),
        ("plain", "plain", "plain"),
        ("broken {", "broken {", "broken {"),
    ],
)
def test_masks(monkeypatch: pytest.MonkeyPatch, template: str, key: str, shown: str) -> None:
    monkeypatch.setattr(key_masks, "_formats", lambda: iter([template]))
    assert key_masks.masked(key).replace(key_masks.HIDDEN, "#") == shown


def test_the_surest_template_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = ["{key}", "{token}", "one:{key}", "{a}:{b}:{c}:{d}:{token}"]
    monkeypatch.setattr(key_masks, "_formats", lambda: iter(formats))
    assert key_masks.masked("one:x") == "one:x"
    assert key_masks.masked("other") == key_masks.HIDDEN
    assert key_masks.masked(":" * 255)  # within no time


def test_the_names_are_those_of_the_setting(settings: Any) -> None:
    settings.DJ_QUEUE_ADMIN = {"redact": ["email"]}
    assert key_masks.masked("login:ann:tok") == f"login:{key_masks.HIDDEN}:tok"
