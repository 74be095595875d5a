"""Small pieces of HTML that lists and pages share."""

from __future__ import annotations

from datetime import datetime

from django.utils import formats
from django.utils.html import format_html
from django.utils.safestring import SafeString

from dj_queue_admin import moments

NOTHING = SafeString('<span class="djq-none" aria-hidden="true">-</span>')


def badge(state: str | None) -> SafeString:
    """A state, by colour and by word."""
    shown = state or "unknown"
    return format_html('<span class="djq-state djq-state-{}">{}</span>', shown, shown)


def moment(at: datetime | None) -> SafeString:
    """A time in the site's zone, which the console's script turns into the viewer's; the exact one on hover."""
    if at is None:
        return NOTHING
    local = moments.local(at)
    return format_html(
        '<time datetime="{}" title="{}" data-djq-time="absolute">{}</time>',
        at.isoformat(),
        f"{local:%Y-%m-%d %H:%M:%S.%f} {moments.zone_of(local)}".strip(),
        formats.date_format(local, "Y-m-d H:i:s"),
    )


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def since(at: datetime | None, now: datetime) -> str:
    return duration(moments.between(at, now)) if at else ""


def link(address: str, text: object) -> SafeString:
    return format_html('<a href="{}">{}</a>', address, text)


def counted(number: int, noun: str) -> str:
    """ "1 job", "12 jobs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
