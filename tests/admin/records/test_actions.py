"""Every verb, by who may use it, on which backend, and on what has changed meanwhile."""

import threading
from typing import Any

import pytest
from django.contrib.admin.models import DELETION, LogEntry
from django.contrib.messages import get_messages
from django.db import connections
from django.test import Client

from dj_queue.api import QueueInfo, schedule_recurring_task
from dj_queue.models import FailedExecution, Job, Pause, RecurringExecution, RecurringTask
from dj_queue.operations import jobs
from tests.admin.records.conftest import Operator, fail, finish
from tests.project import tasks
from tests.working import claim, work

pytestmark = pytest.mark.django_db


def said(answer: Any) -> str:
    return " ".join(str(message) for message in get_messages(answer.wsgi_request))


def act(client: Client, row: Any, verb: str, *, alias: str = "default", site: str = "admin") -> Any:
    address = f"/{site}/dj_queue/{row._meta.model_name}/{row.pk}/change/?backend={alias}"
    return client.post(address, {"_djq_object_action": verb})


def select(client: Client, model: str, action: str, rows: list[Any], *, alias: str = "default", **more: str) -> Any:
    data = {"action": action, "_selected_action": [row.pk for row in rows], "index": "0", **more}
    return client.post(f"/admin/dj_queue/{model}/?backend={alias}", data)


# ---- a verb, its model, the permissions of which each is enough, and what it leaves behind -----------


def _failed(alias: str) -> Job:
    return fail(alias=alias)


def _failure(alias: str) -> FailedExecution:
    return FailedExecution.objects.get(job=fail(alias=alias))


def _pause(alias: str) -> Pause:
    QueueInfo("held", backend_alias=alias).pause()
    return Pause.objects.get(backend_alias=alias)


def _dynamic(alias: str) -> RecurringTask:
    return schedule_recurring_task(
        key="dynamic", task_path="tests.project.tasks.add", schedule="0 3 * * *", args=[1, 2], backend_alias=alias
    )


def _is(state: str) -> Any:
    return lambda row: Job.objects.get(pk=getattr(row, "job_id", row.pk)).status == state


def _job_is_gone(row: Any) -> bool:
    return not Job.objects.filter(pk=getattr(row, "job_id", row.pk)).exists()


def _is_gone(row: Any) -> bool:
    return not type(row).objects.filter(pk=row.pk).exists()


def _has_copy(row: Job) -> bool:
    return Job.objects.filter(backend_alias=row.backend_alias, task_path=row.task_path).count() == 2


def _has_run(row: RecurringTask) -> bool:
    job = Job.objects.get()
    return (job.task_path, job.status, job.backend_alias) == (row.task_path, "ready", row.backend_alias)


VERBS = [
    ("retry", _failed, ["change_job", "operate_queue"], _is("ready")),
    ("enqueue", _failed, ["change_job", "operate_queue"], _has_copy),
    ("discard", _failed, ["delete_job"], _job_is_gone),
    ("retry", _failure, ["change_failedexecution", "operate_queue"], _is("ready")),
    ("discard", _failure, ["delete_failedexecution"], _job_is_gone),
    ("resume", _pause, ["change_pause", "operate_queue"], _is_gone),
    ("run", _dynamic, ["change_recurringtask", "operate_queue"], _has_run),
    ("unschedule", _dynamic, ["delete_recurringtask"], _is_gone),
]
NAMES = [f"{verb} a {make.__name__[1:]}" for verb, make, _, _ in VERBS]
EVERY = [
    f"{right}_{model}"
    for right in ("add", "change", "delete", "view")
    for model in ("job", "failedexecution", "pause", "recurringtask", "process", "semaphore")
] + ["operate_queue"]


@pytest.mark.parametrize("alias", ["default", "other"])
@pytest.mark.parametrize(("verb", "make", "enough", "done"), VERBS, ids=NAMES)
def test_each_permission_that_is_enough(
    two_backends: None, operator: Operator, alias: str, verb: str, make: Any, enough: list[str], done: Any
) -> None:
    for codename in enough:
        row = make(alias)
        client = operator(codename)
        page = client.get(f"/admin/dj_queue/{row._meta.model_name}/{row.pk}/change/?backend={alias}")
        assert f'value="{verb}"' in page.content.decode()
        answer = act(client, row, verb, alias=alias)
        assert answer.status_code == 302, answer.content
        assert done(row)
        entry = LogEntry.objects.get()
        assert (entry.user.username, entry.object_id) == (answer.wsgi_request.user.username, str(_logged(row)))
        Job.objects.all().delete()
        LogEntry.objects.all().delete()


def _logged(row: Any) -> Any:
    return getattr(row, "job_id", row.pk)


@pytest.mark.parametrize(("verb", "make", "enough", "done"), VERBS, ids=NAMES)
def test_all_other_permissions_together_are_not_enough(
    operator: Operator, verb: str, make: Any, enough: list[str], done: Any
) -> None:
    row = make("default")
    client = operator(*(codename for codename in EVERY if codename not in enough))
    page = client.get(f"/admin/dj_queue/{row._meta.model_name}/{row.pk}/change/")
    assert page.status_code == 200
    assert f'value="{verb}"' not in page.content.decode()
    assert act(client, row, verb).status_code == 403
    assert not done(row) if verb != "run" else not Job.objects.exists()
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(("verb", "make", "enough", "done"), VERBS, ids=NAMES)
def test_who_is_not_staff_is_asked_to_log_in(
    operator: Operator, verb: str, make: Any, enough: list[str], done: Any
) -> None:
    row = make("default")
    for client in (Client(), operator(*EVERY, staff=False)):
        answer = act(client, row, verb)
        assert answer.status_code == 302
        assert "/admin/login/" in answer["Location"]
        assert client.get(f"/admin/dj_queue/{row._meta.model_name}/").status_code == 302


@pytest.mark.parametrize(("verb", "make", "enough", "done"), VERBS, ids=NAMES)
def test_a_second_time_is_calm_and_changes_nothing(
    admin_client: Client, verb: str, make: Any, enough: list[str], done: Any
) -> None:
    row = make("default")
    act(admin_client, row, verb)
    if verb in ("enqueue", "run"):
        return  # each time means another job
    entries = LogEntry.objects.count()
    answer = act(admin_client, row, verb)
    assert answer.status_code == 302
    assert "Nothing was changed" in said(answer)
    assert LogEntry.objects.count() == entries


@pytest.mark.parametrize(("verb", "make", "enough", "done"), VERBS, ids=NAMES)
def test_another_backends_row_is_out_of_reach(
    two_backends: None, admin_client: Client, verb: str, make: Any, enough: list[str], done: Any
) -> None:
    row = make("other")
    answer = act(admin_client, row, verb, alias="default")
    assert "not there" in said(answer)
    assert not LogEntry.objects.exists()
    assert not done(row) if verb != "run" else not Job.objects.exists()


@pytest.mark.parametrize(("verb", "make", "enough", "done"), VERBS, ids=NAMES)
def test_the_verbs_need_a_csrf_token(admin_user: Any, verb: str, make: Any, enough: list[str], done: Any) -> None:
    row = make("default")
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert act(client, row, verb).status_code == 403
    assert not done(row) if verb != "run" else not Job.objects.exists()


def test_the_verbs_on_a_custom_site_stay_there(admin_client: Client) -> None:
    answer = act(admin_client, _failed("default"), "retry", site="console")
    assert answer["Location"].startswith("/console/dj_queue/job/")


def test_an_unknown_verb_says_which_there_are(admin_client: Client) -> None:
    answer = act(admin_client, _failed("default"), "explode")
    assert (answer.status_code, answer.content.decode()) == (
        400,
        "_djq_object_action must be one of: enqueue, retry, discard.",
    )


# ---- what each does beyond that ----------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "scheduled", "blocked", "claimed", "finished"])
def test_what_is_not_failed_cannot_be_retried(admin_client: Client, state: str) -> None:
    job = _in_state(state)
    answer = act(admin_client, job, "retry")
    assert "Nothing was changed" in said(answer)
    assert Job.objects.get(pk=job.pk).status == state


@pytest.mark.parametrize("state", ["ready", "scheduled", "blocked", "claimed", "finished"])
def test_what_waits_can_be_discarded_and_what_runs_or_is_done_cannot(admin_client: Client, state: str) -> None:
    job = _in_state(state)
    answer = act(admin_client, job, "discard")
    stays = state in ("claimed", "finished")
    assert Job.objects.filter(pk=job.pk).exists() == stays
    assert ("Nothing was changed" in said(answer)) == stays
    assert list(LogEntry.objects.values_list("action_flag", flat=True)) == ([] if stays else [DELETION])


def _in_state(state: str) -> Job:
    from datetime import timedelta

    from django.utils import timezone

    match state:
        case "scheduled":
            result = tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
        case "blocked":
            tasks.one_per_key.enqueue("k")
            result = tasks.one_per_key.enqueue("k")
        case "finished":
            return finish(1)
        case _:
            result = tasks.add.enqueue(1, 2)
    if state == "claimed":
        assert claim()
    job = Job.objects.get(pk=result.id)
    assert job.status == state
    return job


def test_a_copy_is_linked_and_the_original_untouched(admin_client: Client) -> None:
    job = finish(1, b=2)
    answer = act(admin_client, job, "enqueue")
    copy = Job.objects.exclude(pk=job.pk).get()
    assert f"/admin/dj_queue/job/{copy.pk}/change/?backend=default" in said(answer)
    assert (copy.status, copy.payload) == ("ready", job.payload)
    assert Job.objects.get(pk=job.pk).status == "finished"


def test_a_static_recurring_task_is_not_unscheduled(admin_client: Client) -> None:
    row = _dynamic("default")
    RecurringTask.objects.update(static=True)
    page = admin_client.get(f"/admin/dj_queue/recurringtask/{row.pk}/change/").content.decode()
    assert 'value="unschedule"' not in page
    assert "configured in the settings" in said(act(admin_client, row, "unschedule"))
    assert not _is_gone(row)
    assert "Left 1 task alone" in said(select(admin_client, "recurringtask", "unschedule_tasks", [row]))
    assert not _is_gone(row)


def test_running_a_recurring_task_now_touches_no_tick(admin_client: Client) -> None:
    row = _dynamic("default")
    act(admin_client, row, "run")
    act(admin_client, row, "run")
    assert Job.objects.count() == 2
    assert not RecurringExecution.objects.exists()
    assert {job.return_value for job in Job.objects.filter(pk__in=[job.claim.job_id for job in work()])} == {3}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"task_path": "nowhere.to.be.found"}, "cannot import the task"),
        ({"task_path": "tests.project.tasks.not_a_task"}, "not a task"),
    ],
)
def test_a_recurring_task_without_its_code_is_not_run(admin_client: Client, change: Any, why: str) -> None:
    row = _dynamic("default")
    RecurringTask.objects.update(**change)
    answer = act(admin_client, row, "run")
    assert "Nothing was enqueued" in said(answer)
    assert why in said(answer)
    assert not Job.objects.exists()
    assert not LogEntry.objects.exists()


# ---- actions of lists --------------------------------------------------------------------------------

LISTS = [
    ("job", "retry_jobs", _failed, ["change_job", "operate_queue"], _is("ready")),
    ("job", "discard_jobs", _failed, ["delete_job"], _job_is_gone),
    ("failedexecution", "retry_jobs", _failure, ["change_failedexecution", "operate_queue"], _is("ready")),
    ("failedexecution", "discard_jobs", _failure, ["delete_failedexecution"], _job_is_gone),
    ("recurringtask", "unschedule_tasks", _dynamic, ["delete_recurringtask"], _is_gone),
]


@pytest.mark.parametrize("alias", ["default", "other"])
@pytest.mark.parametrize(("model", "action", "make", "enough", "done"), LISTS)
def test_each_permission_that_is_enough_for_a_list(
    two_backends: None, operator: Operator, alias: str, model: str, action: str, make: Any, enough: Any, done: Any
) -> None:
    for codename in enough:
        row, client = make(alias), operator(codename)
        answer = select(client, model, action, [row], alias=alias)
        assert (answer.status_code, done(row)) == (302, True)
        assert LogEntry.objects.get().object_id == str(_logged(row))
        Job.objects.all().delete()
        LogEntry.objects.all().delete()


@pytest.mark.parametrize(("model", "action", "make", "enough", "done"), LISTS)
def test_a_list_without_permission(
    operator: Operator, model: str, action: str, make: Any, enough: Any, done: Any
) -> None:
    row, client = make("default"), operator(*(codename for codename in EVERY if codename not in enough))
    assert action not in client.get(f"/admin/dj_queue/{model}/").content.decode()
    assert select(client, model, action, [row]).status_code == 403
    assert not done(row)
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(("model", "action", "make", "enough", "done"), LISTS)
def test_a_list_does_not_reach_another_backend(
    two_backends: None, admin_client: Client, model: str, action: str, make: Any, enough: Any, done: Any
) -> None:
    row = make("other")
    answer = select(admin_client, model, action, [row])
    assert not done(row)
    assert "alone" in said(answer)


def test_a_mixed_selection_is_told_apart(admin_client: Client) -> None:
    failed, done = fail(), finish(1)
    answer = select(admin_client, "job", "retry_jobs", [failed, done])
    assert said(answer) == "Retried 1 job. Left 1 job alone: not failed (any more)."
    assert LogEntry.objects.get().object_id == str(failed.pk)


def test_a_selection_of_nonsense_changes_nothing(admin_client: Client) -> None:
    fail()
    for model, action in (
        ("job", "retry_jobs"),
        ("failedexecution", "discard_jobs"),
        ("recurringtask", "unschedule_tasks"),
    ):
        answer = admin_client.post(
            f"/admin/dj_queue/{model}/", {"action": action, "_selected_action": ["x", "9" * 50], "index": "0"}
        )
        assert answer.status_code == 302
    assert Job.objects.get().status == "failed"


@pytest.mark.django_db(transaction=True)
def test_two_operators_at_once_do_it_once(admin_user: Any) -> None:
    row = _failed("default")
    barrier = threading.Barrier(2)
    answers = []

    def press() -> None:
        client = Client()
        client.force_login(admin_user)
        barrier.wait()
        try:
            answers.append(act(client, row, "retry"))
        finally:
            connections.close_all()

    pressing = [threading.Thread(target=press) for _ in range(2)]
    for each in pressing:
        each.start()
    for each in pressing:
        each.join()
    assert sorted("Nothing was changed" in said(answer) for answer in answers) == [False, True]
    job = Job.objects.get()
    assert (job.status, len(job.errors or [])) == ("ready", 1)
    assert LogEntry.objects.count() == 1


def test_core_says_what_is_not_there() -> None:
    from dj_queue.operations.recurring import enqueue_now

    with pytest.raises(RecurringTask.DoesNotExist):
        enqueue_now("none")
    with pytest.raises(FailedExecution.DoesNotExist):
        jobs.retry_failed_job("none")
