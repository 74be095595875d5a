"""The demo's tasks."""

import asyncio

from django.tasks import TaskContext, task


@task
def multiply(a: int, b: int) -> int:
    return a * b


@task(queue_name="email", priority=10)
def deliver(address: str) -> str:
    return f"delivered to {address}"


@task
async def fetch(page: int) -> dict[str, int]:
    await asyncio.sleep(0.01)
    return {"page": page}


@task(takes_context=True)
def introduce(context: TaskContext, name: str) -> str:
    return f"{name}: attempt {context.attempt} of job {context.task_result.id[:8]}"


@task
def divide(a: int, b: int) -> float:
    return a / b
