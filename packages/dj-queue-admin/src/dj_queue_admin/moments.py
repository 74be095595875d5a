"""Points in time as pages write them, those at the ends of the calendar too, which no other zone can tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.utils import timezone


def aware(at: datetime) -> datetime:
    """With a zone; without `USE_TZ`, stored times are the project's local ones."""
    if timezone.is_aware(at):
        return at
    try:
        made = timezone.make_aware(at, timezone.get_default_timezone())
        made.astimezone(UTC)  # what a page writes for its script
    except (OverflowError, ValueError):
        return at.replace(tzinfo=UTC)
    return made


def local(at: datetime) -> datetime:
    """In the site's zone, or as it is where the calendar ends before."""
    if timezone.is_naive(at) and not settings.USE_TZ:
        return at
    try:
        return timezone.localtime(aware(at))
    except (OverflowError, ValueError):
        return aware(at)


def zone_of(at: datetime) -> str:
    try:
        return at.tzname() or ""
    except (OverflowError, ValueError):
        return ""


def between(earlier: datetime, later: datetime) -> float:
    """Seconds from one time to another, with or without zones."""
    return (aware(later) - aware(earlier)) / timedelta(seconds=1)
