"""Charts as SVG, drawn here: no script and no style of their own, so that any content policy allows them.

A plot is stretched to the width it has; what must not be stretched, its labels, is HTML around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dj_queue.operations.history import History, Step
from dj_queue_admin.templatetags.dj_queue_admin import duration, number

WIDTH, HEIGHT = 720, 120


@dataclass(frozen=True)
class Series:
    name: str
    kind: str  # ok, bad, wait or slow: its colour
    value: Callable[[Step], float | None]
    write: Callable[[Any], str]
    total: str = ""


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Line:
    path: str
    area: str
    kind: str


@dataclass(frozen=True)
class Hit:
    """A step of the plot that answers to the pointer."""

    x: float
    width: float
    start: datetime
    text: str


@dataclass(frozen=True)
class Row:
    start: datetime
    cells: Sequence[str]


@dataclass(frozen=True)
class Chart:
    key: str
    title: str
    note: str
    series: Sequence[Series]
    ticks: Sequence[str]  # of the y axis, from the top
    empty: bool
    hits: Sequence[Hit]
    rows: Sequence[Row]
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()
    width: int = WIDTH
    height: int = HEIGHT
    grid: Sequence[float] = field(default=(0.0, HEIGHT / 2))


def charts(history: History, now: str, *, keeps_finished: bool) -> list[Chart]:
    """Throughput, failures, waiting jobs and how long they wait; `now` says what waits at the moment."""
    steps = history.steps
    about = "about " if history.finished_estimated else ""
    finished, failed = sum(step.finished for step in steps), sum(step.failed for step in steps)
    at_least = "+" if history.failures_capped else ""
    return [
        _bars(
            "throughput",
            "Throughput",
            f"{about}{number(finished)} finished"
            if keeps_finished
            else "finished jobs are not kept (preserve_finished_jobs)",
            [
                Series("finished", "ok", lambda step: step.finished, number),
                Series("enqueued", "wait", lambda step: step.enqueued, number),
            ],
            steps,
        ),
        _bars(
            "failures",
            "Failures",
            f"{number(failed)}{at_least} still failed",
            [Series("failed", "bad", lambda step: step.failed, number)],
            steps,
        ),
        _lines(
            "depth",
            "Waiting jobs",
            now,
            [Series("waiting", "wait", lambda step: step.waiting, number)],
            steps,
            area=True,
        ),
        _lines(
            "latency",
            "Time to start",
            "from ready to started",
            [
                Series("19 of 20 within", "slow", lambda step: step.longest_wait, duration),
                Series("half within", "ok", lambda step: step.median_wait, duration),
            ],
            steps,
            area=False,
        ),
    ]


def _bars(key: str, title: str, note: str, series: Sequence[Series], steps: Sequence[Step]) -> Chart:
    """The first series as bars, the others as lines above them."""
    values = [value for each in series for step in steps if (value := each.value(step)) is not None]
    top = _round_up(max(values, default=0), whole=True)
    width = WIDTH / len(steps)
    bars = []
    for n, step in enumerate(steps):
        value = series[0].value(step) or 0
        height = _scaled(value, top)
        if height:
            bars.append(
                Bar(
                    _round(n * width + width * 0.12),
                    _round(HEIGHT - height),
                    _round(width * 0.76),
                    height,
                    series[0].kind,
                )
            )
    lines = [_line(each, steps, top, area=False) for each in series[1:]]
    return Chart(
        key,
        title,
        note,
        series,
        _ticks(top, number),
        not any(values),
        _hits(series, steps),
        _rows(series, steps),
        bars,
        lines,
    )


def _lines(key: str, title: str, note: str, series: Sequence[Series], steps: Sequence[Step], *, area: bool) -> Chart:
    values = [value for each in series for step in steps if (value := each.value(step)) is not None]
    write = series[0].write
    largest = max(values, default=0)
    top = _round_up(largest, whole=True) if write is number else _round_up_time(largest)
    lines = [_line(each, steps, top, area=area) for each in series]
    return Chart(
        key,
        title,
        note,
        series,
        _ticks(top, write),
        not any(values),
        _hits(series, steps),
        _rows(series, steps),
        (),
        lines,
    )


def _line(series: Series, steps: Sequence[Step], top: float, *, area: bool) -> Line:
    """A path with gaps where there is no value; a value on its own is a short stroke."""
    width = WIDTH / len(steps)
    pieces: list[list[tuple[float, float]]] = [[]]
    for n, step in enumerate(steps):
        value = series.value(step)
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((_round((n + 0.5) * width), _round(HEIGHT - _scaled(value, top))))
    pieces = [piece if len(piece) > 1 else _stroke(piece[0], width) for piece in pieces if piece]
    path = " ".join("M" + " L".join(f"{x:g} {y:g}" for x, y in piece) for piece in pieces)
    filled = " ".join(
        f"M{piece[0][0]:g} {HEIGHT} L" + " L".join(f"{x:g} {y:g}" for x, y in piece) + f" L{piece[-1][0]:g} {HEIGHT} Z"
        for piece in pieces
    )
    return Line(path, filled if area else "", series.kind)


def _stroke(point: tuple[float, float], width: float) -> list[tuple[float, float]]:
    x, y = point
    return [(_round(x - width / 2), y), (_round(x + width / 2), y)]


def _hits(series: Sequence[Series], steps: Sequence[Step]) -> list[Hit]:
    width = WIDTH / len(steps)
    return [
        Hit(
            _round(n * width),
            _round(width),
            step.start,
            ", ".join(f"{each.name} {each.write(each.value(step))}" for each in series),
        )
        for n, step in enumerate(steps)
    ]


def _rows(series: Sequence[Series], steps: Sequence[Step]) -> list[Row]:
    """What the table says: the steps in which anything happened."""
    found = [
        Row(step.start, [each.write(each.value(step)) for each in series])
        for step in steps
        if any(each.value(step) for each in series)
    ]
    return found[::-1]


def _ticks(top: float, write: Callable[[Any], str]) -> list[str]:
    half = top / 2
    return [write(top), write(int(half) if half == int(half) else half) if top != 1 else "", write(0)]


# Above a second: so that half of it is round as well.
_TIMES = (2, 4, 10, 20, 40, 60, 120, 240, 600, 1200, 2400, 3600, 7200, 14400, 28800, 43200, 86400)


def _round_up_time(seconds: float) -> float:
    if seconds <= 1:
        return _round_up(seconds, whole=False)
    return next((top for top in _TIMES if top >= seconds), -(-seconds // 172800) * 172800)


def _round_up(value: float, *, whole: bool) -> float:
    """The next of 1, 2, 4, 6, 8 and 10 at the value's size, so that half of it is round as well."""
    if value <= 0:
        return 2 if whole else 1.0
    size = 1.0
    while size * 10 < value:
        size *= 10
    while size > value and not whole:
        size /= 10
    top = next(step * size for step in (1, 2, 4, 6, 8, 10) if step * size >= value)
    return int(max(top, 2)) if whole else top


def _scaled(value: float, top: float) -> float:
    # What is there at all can be seen.
    return max(1.5, _round(value / top * (HEIGHT - 4))) if value else 0.0


def _round(value: float) -> float:
    return round(value, 1)
