"""The dashboard and the rules that are shipped speak of metrics that exist, with labels that they have."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dj_queue_prometheus import collector, recorder

pytestmark = pytest.mark.once  # no database has a part in it, nor any version of Python

MONITORING = Path(__file__).parent.parent.parent / "packages" / "dj-queue-prometheus" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]

SAMPLES: dict[str, list[str]] = {name: labels for name, (_, labels) in collector._FAMILIES.items()}
SAMPLES |= {f"{family[0]}_total": recorder.LABELS for family in (recorder.FINISHED, recorder.FAILED)}
SAMPLES |= {
    f"{family[0]}_{part}": [*recorder.LABELS, *(["le"] if part == "bucket" else [])]
    for family in (recorder.DURATION, recorder.WAIT)
    for part in ("bucket", "sum", "count")
}


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_every_metric_and_label_exists(place: str, expression: str) -> None:
    names = re.findall(r"\bdj_queue_\w+", expression)
    assert names, place
    known = {label for name in names for label in SAMPLES[name]}
    for selector in re.findall(r"(dj_queue_\w+)\{([^}]*)\}", expression):
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector[1])
        assert set(labels) <= set(SAMPLES[selector[0]]), place
    for grouping in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in grouping.split(",")} <= known, place


def test_parentheses_are_closed() -> None:
    for place, expression in expressions():
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), place


def test_every_rule_says_what_is_wrong() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_family_is_in_the_documentation() -> None:
    text = (MONITORING.parent.parent.parent / "docs" / "monitoring.md").read_text()
    for name in SAMPLES:
        assert f"`{re.sub('_(bucket|sum|count)$', '', name)}" in text, name
