"""The tasks of the examples. A worker imports them by their module, so they live in one."""

import asyncio
import os
import time
from datetime import timedelta

from django.tasks import TaskContext, task
from django.utils import timezone

from dj_queue.api import concurrency


@task
def add(a, b):
    return a + b


@task
def pid():
    return os.getpid()


@task
def note(text):
    return text


@task
def send_digest(period):
    return f"the {period} digest was sent"


@task
async def fetch(url):
    await asyncio.sleep(0.05)
    return f"fetched {url}"


@task(takes_context=True)
def describe(context: TaskContext, name):
    return f"{name} is attempt {context.attempt}"


@task(takes_context=True)
def sometimes(context: TaskContext, succeeds_at):
    if context.attempt < succeeds_at:
        raise ConnectionError("the other side is away")
    return f"attempt {context.attempt} got through"


@task
def call(number, tries=3):
    """Tries again by itself, later and later: the next try is a job of its own."""
    try:
        raise ConnectionError("engaged")
    except ConnectionError:
        if tries == 1:
            raise
        pause = timedelta(seconds=0.1 * 2 ** (3 - tries))
        return call.using(run_after=timezone.now() + pause).enqueue(number, tries - 1).id


@task
def charge(order_id, amount):
    if amount < 0:
        raise ValueError(f"order {order_id}: {amount} is no amount")
    return f"charged {amount}"


@task
@concurrency(key="account:{account_id}", limit=1)
def sync_account(account_id, action):
    began = time.time()
    time.sleep(0.2)
    return [action, began, time.time()]


@task
@concurrency(key="report:{name}", limit=1, on_conflict="discard")
def build_report(name):
    time.sleep(0.2)
    return f"{name} was built"


def day_of(report):
    return f"import:{report['day']}"


@task
@concurrency(key=day_of, on_conflict="discard")
def import_report(report):
    return f"{report['rows']} rows of {report['day']}"
