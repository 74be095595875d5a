"""docs/COMPARISONS.md is dated, names whom it promises, and has a link for what it says of each."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once  # no database has a part in it, nor any version of Python

PAGE = (Path(__file__).parent.parent / "docs" / "COMPARISONS.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
OTHERS = [
    "Celery",
    "RQ and django-rq",
    "Dramatiq",
    "Huey",
    "Django-Q2",
    "Procrastinate",
    "pgqueuer",
    "django-tasks-db",
    "django-ox",
    "steady-queue",
    "dj-queue 0.x",
]


def test_it_is_dated() -> None:
    assert "2026-11" in PAGE.split("## ")[0]


def test_when_not_to_choose_us_comes_first() -> None:
    assert list(SECTIONS) == ["When not to choose dj-queue", "At a glance", *OTHERS, "Figures"]


@pytest.mark.parametrize("name", OTHERS)
def test_each_has_links_and_both_answers(name: str) -> None:
    assert re.search(r"\]\(https://[^)]+\)", SECTIONS[name])
    assert re.search(r"\*\*(Choose|Stay with) ", SECTIONS[name])
    assert re.search(r"\*\*(Choose dj-queue|Move)\*\*", SECTIONS[name])


def test_the_table_leads_to_every_section() -> None:
    anchors = re.findall(r"^\| \[[^\]]+\]\(#([^)]+)\)", SECTIONS["At a glance"], re.MULTILINE)
    assert anchors == [re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in OTHERS]
    widths = {row.count("|") for row in SECTIONS["At a glance"].splitlines() if row.startswith("|")}
    assert len(widths) == 1


def test_figures_say_where_they_are_from() -> None:
    assert "at commit a410fef" in SECTIONS["Figures"]
    for name, text in SECTIONS.items():
        assert name == "Figures" or "jobs/s" not in text, "a figure without its origin"
