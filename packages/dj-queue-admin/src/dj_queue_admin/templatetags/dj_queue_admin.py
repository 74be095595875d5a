"""How numbers, spans of time and points in time are written on every page of the console."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django import template
from django.apps import apps
from django.utils.html import format_html
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.models import RecurringTask, Semaphore
from dj_queue.operations.observation import ObservedQueue, ObservedSemaphore
from dj_queue_admin import liveness, moments
from dj_queue_admin.links import Links

register = template.Library()

NOTHING = "\N{EN DASH}"

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


@register.filter
def number(value: int | None, capped: Any = False) -> str:
    """1234567 as 1,234,567; with a plus where that is a lower bound."""
    if value is None:
        return NOTHING
    return f"{value:,}+" if capped else f"{value:,}"


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits: 350 ms, 4.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    for (size, unit), (smaller, below) in zip(_UNITS, (*_UNITS[1:], (1.0, "s")), strict=True):
        if seconds >= size - smaller / 2:
            whole, rest = divmod(round(seconds / smaller), round(size / smaller))
            return f"{whole} {unit} {rest} {below}" if rest else f"{whole} {unit}"
    raise AssertionError("unreachable")


@register.simple_tag
def when(time: datetime | None, now: datetime | None = None) -> SafeString | str:
    """A point in time: the script writes it in the visitor's zone; how far from `now`, if that is given."""
    if time is None:
        return NOTHING
    time = moments.aware(time)
    local = moments.local(time)
    exact = f"{local:%Y-%m-%d %H:%M:%S} {moments.zone_of(local)}"
    if now is None:
        return format_html(
            '<time datetime="{}" title="{}" data-djq-time="absolute">{}</time>', time.isoformat(), exact, exact
        )
    away = moments.between(time, now)
    text = f"{duration(away)} ago" if away >= 0 else f"in {duration(-away)}"
    return format_html(
        '<time datetime="{}" title="{}" data-djq-time="relative">{}</time>', time.isoformat(), exact, text
    )


@register.simple_tag
def life(config: BackendConfig, age: float) -> SafeString:
    """Whether a process lives, by the age of its last heartbeat."""
    word = liveness.life(config, age)
    tone = {"live": "good", "late": "warn", "stale": "bad"}[word]
    return format_html('<span class="djq-badge djq-tone-{}">{}</span>', tone, word.replace("live", "alive"))


# ---- links ------------------------------------------------------------------------------------------


@register.simple_tag
def queue_link(links: Links, name: str) -> str:
    return links.queue(name)


@register.simple_tag
def queue_action_link(links: Links, name: str) -> str:
    return links.queue_action(name)


@register.simple_tag
def jobs_action_link(links: Links, name: str) -> str:
    return links.jobs_action(name)


@register.simple_tag
def row_link(links: Links, model: str, pk: object, text: str) -> SafeString | str:
    """The text, leading to the page of a row where the site has one."""
    return _link(links.row(apps.get_model("dj_queue", model), pk), text)


@register.simple_tag
def recurring_link(links: Links, key: str) -> SafeString | str:
    return _link(links.rows(RecurringTask, q=key), key)


@register.simple_tag
def semaphore_link(links: Links, keys: Mapping[str, str], key: str) -> SafeString | str:
    """The key as it may be shown, leading to its semaphore where the address tells no more than that."""
    return _link(links.rows(Semaphore, q=key) if keys[key] == key else None, keys[key])


@register.simple_tag
def count_cell(links: Links, queue: ObservedQueue, state: str) -> SafeString:
    """How many jobs a queue has in a state, leading to them."""
    count = getattr(queue, state)
    text = number(count, state in queue.capped)
    if not count:
        return format_html('<td class="djq-number djq-none">{}</td>', text)
    tone = " djq-tone-bad" if state == "failed" else ""
    return format_html(
        '<td class="djq-number{}"><a href="{}" aria-label="{} {} of {}">{}</a></td>',
        tone, links.queue(queue.name, state=state), text, state, queue.name, text,
    )  # fmt: skip


@register.simple_tag
def slots(semaphore: ObservedSemaphore) -> SafeString:
    """How many slots of a semaphore are taken, as a meter and in numbers."""
    taken = max(0, semaphore.limit - semaphore.available_slots)
    return format_html(
        '<meter min="0" max="{}" value="{}" aria-label="taken slots"></meter> {} of {}',
        max(semaphore.limit, 1), taken, taken, semaphore.limit,
    )  # fmt: skip


def _link(address: str | None, text: str) -> SafeString | str:
    return format_html('<a href="{}">{}</a>', address, text) if address else text
