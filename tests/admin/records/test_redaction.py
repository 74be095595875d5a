"""Values that go under a hidden name stand on no page, in no list and in no count, however they are spelled."""

import base64
import html
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from dj_queue.dialects import dialect_for
from dj_queue.models import FailedExecution, Job, ReadyExecution
from dj_queue_admin.redaction import redaction
from dj_queue_admin.secrets import HIDDEN, Secrets

pytestmark = pytest.mark.django_db

SECRET = "hunter2-Sw0rdfish"
# Deeper than a page shows, where the database stores that.
DEEP = min(60, dialect_for("default").json_limits.depth - 4)
PAGES = (
    "/admin/dj_queue/job/",
    "/admin/dj_queue/failedexecution/",
    "/admin/dj_queue/failedexecution/groups/",
    "/admin/dj_queue/dashboard/queue/default/?state=failed",
)

SPELLED: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda value: repr(value.encode()),
    "repr within repr": lambda value: repr(repr(value)),
    "JSON": json.dumps,
    "JSON with other characters as they are": lambda value: json.dumps(value, ensure_ascii=False),
    "JSON within JSON": lambda value: json.dumps(json.dumps(value)),
    "percent": lambda value: quote(value, safe=""),
    "percent, slashes as they are": quote,
    "form": quote_plus,
    "HTML": html.escape,
    "hexadecimal": lambda value: value.encode().hex(),
    "base64 at the start": lambda value: base64.b64encode(value.encode()).decode(),
    "base64 after one byte": lambda value: base64.b64encode(f"u{value}".encode()).decode(),
    "base64 after two bytes": lambda value: base64.b64encode(f"u:{value}".encode()).decode(),
    "base64 for addresses": lambda value: base64.urlsafe_b64encode(f"user:{value}".encode()).decode(),
    "upper case": str.upper,
    "lines wrapped": lambda value: "\n".join(value.split(" ")),
}


def failed(kwargs: dict[str, Any], message: str, *, args: tuple[Any, ...] = (), **more: Any) -> Job:
    payload = {"args": list(args), "kwargs": kwargs}
    job = Job.objects.create(task_path="tests.project.tasks.log_in", payload=payload, queue_name="default", **more)
    FailedExecution.objects.create(
        job=job, queue_name="default", exception_class="builtins.ValueError", message=message, traceback=message
    )
    return job


def everything(client: Client) -> str:
    failure = FailedExecution.objects.get()
    own = (
        f"/admin/dj_queue/job/{failure.job_id}/change/",
        f"/admin/dj_queue/failedexecution/{failure.pk}/change/",
    )
    return "\n".join(html.unescape(client.get(address).content.decode()) for address in (*PAGES, *own))


@pytest.mark.parametrize("spelled", SPELLED.values(), ids=list(SPELLED))
@pytest.mark.parametrize("secret", [SECRET, 'it\'s a "pass\\word"/+ü&=', "two  spaces secret"])
def test_a_hidden_value_is_hidden_in_every_spelling(secret: str, spelled: Callable[[str], str]) -> None:
    text = spelled(secret)
    hidden = Secrets([secret]).hide(f"before {text} after")
    core = text.strip("'\"\\=")[4:-4]
    assert core not in hidden
    assert hidden.startswith("before")
    assert hidden.endswith("after")
    assert HIDDEN in hidden


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=60), st.sampled_from(list(SPELLED)))
def test_any_value_is_hidden_in_any_spelling(secret: str, how: str) -> None:
    text = SPELLED[how](secret)
    assert text not in Secrets([secret]).hide(text) or not text.strip()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"password": SECRET},
        {"pwd": SECRET},
        {"a": {"b": [{"Api-Key": SECRET}]}},
        {"\uff50\uff41\uff53\uff53word": SECRET},
        {"pass\u200bword": SECRET},
        {"tokens": {SECRET: 1}},
        {"headers": [["Authorization", f"Bearer {SECRET}"]]},
        {"headers": [{"name": "Authorization", "value": f"Bearer {SECRET}"}]},
        {"headers": f"Authorization: Bearer {SECRET}"},
        {"body": json.dumps({"password": SECRET})},
        {"body": json.dumps({"inner": json.dumps([{"token": SECRET}])})},
        {"url": f"postgres://app:{SECRET}@db/prod"},
        {"url": f"https://x/?a=1&api_key={SECRET}&b=2"},
        {"password": SECRET, "note": f"use {SECRET}", "list": [{"x": [f"{SECRET}!"]}]},
        {"password": SECRET, "body": "z" * 5_000},
        {"password": SECRET, "body": "z" * 200_000},
        {"password": SECRET, "deep": json.loads("[" * DEEP + "]" * DEEP)},
    ],
    ids=lambda kwargs: json.dumps(kwargs)[:60],
)
def test_it_is_hidden_wherever_it_is_planted(admin_client: Client, kwargs: dict[str, Any]) -> None:
    failed(kwargs, f"could not log in with {SECRET}", concurrency_key=f"login:{SECRET}", errors=[["E", f"x {SECRET}"]])
    text = everything(admin_client)
    assert "Not Found" not in text
    assert SECRET not in text
    assert SECRET[:8] not in text


def test_positional_arguments_and_results(admin_client: Client) -> None:
    job = failed({}, f"x {SECRET}", args=("ann", SECRET))
    FailedExecution.objects.filter(job=job).update(message=f"x {SECRET}")
    Job.objects.filter(pk=job.pk).update(return_value={"echo": [SECRET]})
    assert SECRET not in everything(admin_client)


@pytest.mark.parametrize("length", range(270, 302, 4))
def test_a_value_that_the_list_cuts_is_hidden_before(admin_client: Client, length: int) -> None:
    failed({"password": SECRET}, f"{'p' * length} {SECRET} and more")
    assert SECRET[:4] not in everything(admin_client)


def test_a_value_that_was_cut_when_it_was_stored_is_hidden() -> None:
    seam = "\n[... 9999 characters left out ...]\n"
    for cut in range(4, len(SECRET)):
        hidden = Secrets([SECRET]).hide(f"before {SECRET[:cut]}{seam}{SECRET[cut:]} after")
        assert SECRET[:cut] not in hidden
        assert SECRET[cut:] not in hidden or len(SECRET) - cut < 4


def test_long_texts_cost_what_they_are_long() -> None:
    # Ends at once; one that is looked through from each of its letters takes minutes.
    for text in ("z" * 99_000, "a=" * 49_000, "://" * 30_000, "://a:" * 19_000, '{"a":' * 19_000, "bearer " * 14_000):
        assert not redaction().secrets("x.y", {"args": [text], "kwargs": {}})


def test_short_values_are_hidden_where_they_stand_alone() -> None:
    secrets = redaction().secrets("x.y", {"args": [], "kwargs": {"cvv": "937", "card_number": 4111}})
    assert secrets.hide("cvv 937 refused, 19370 is not, 4111 is") == f"cvv {HIDDEN} refused, 19370 is not, {HIDDEN} is"


def test_numbers_are_hidden_however_they_are_written() -> None:
    secrets = redaction().secrets("x.y", {"args": [], "kwargs": {"token": 10**16}})
    for text in ("10000000000000000", "1e+16", "10,000,000,000,000,000"):
        assert secrets.hide(f"x {text} refused") == f"x {HIDDEN} refused"


def test_more_values_than_a_text_can_be_searched_for_hide_it_whole() -> None:
    secrets = redaction().secrets("x.y", {"args": [], "kwargs": {"tokens": [f"token-{n}" for n in range(600)]}})
    assert secrets.hide("with token-599") == HIDDEN


def test_a_message_beside_arguments_that_cannot_be_read_is_not_listed(admin_client: Client) -> None:
    failed({"password": SECRET, "body": "z" * 200_000}, f"x {SECRET[:9]}-cut {SECRET}")
    assert "message not shown here" in admin_client.get("/admin/dj_queue/failedexecution/").content.decode()


def test_a_search_tells_nothing_of_hidden_values(admin_client: Client) -> None:
    jobs = [
        Job(
            task_path="x.y",
            payload={"args": [], "kwargs": {"api_key": "K3y-9f8e", "city": f"Turku {n}"}},
            queue_name="default",
        )
        for n in range(1_100)
    ]
    Job.objects.bulk_create(jobs)
    ReadyExecution.objects.bulk_create(ReadyExecution(job=job, queue_name="default") for job in jobs)

    def counted(text: str, address: str = "/admin/dj_queue/job/") -> str:
        page = admin_client.get(address, {"q": text}).content.decode()
        return page[page.index("djq-count") :][:60]

    assert counted('"api_key": "K3') == counted('"api_key": "zz')
    assert counted("K3y-9f8e") == counted("no such")
    # What can be seen is counted, and that there is more of it.
    assert "1,000+" in counted("Turku")
    assert ">1 job" in counted("Turku 1099")
