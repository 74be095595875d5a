"""Coroutine functions as tasks, enqueueing from asynchronous code, and a task's context."""

from project import runtime, wait_until_finished

import asyncio

from asgiref.sync import sync_to_async

from tasks import describe, fetch


async def main():
    fetched = await fetch.aenqueue("https://example.org/")
    described = await describe.aenqueue("this")
    await sync_to_async(wait_until_finished)(fetched, described)
    print((await fetch.aget_result(fetched.id)).return_value)
    print(described.return_value)


with runtime():
    asyncio.run(main())
