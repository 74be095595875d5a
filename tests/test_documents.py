"""Every block of code in the documents: it parses, its imports are there, its options are valid."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from dj_queue.config import load_config

pytestmark = pytest.mark.once  # no database has a part in it, nor any version of Python

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "examples" / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "packages").glob("*/README.md"),
    ]
)


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{document.relative_to(ROOT)}-{number}")
        for document in DOCUMENTS
        for number, text in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE), 1
        )
    ]


def parse(text: str) -> ast.Module:
    """A whole program, or a part of a settings' mapping. `{..., "key": value}` leaves out what is not the point."""
    text = text.replace("{..., ", "{")
    if text.lstrip("# \n").startswith('"'):
        text = f"{{\n{text}\n}}"
    return compile(text, "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_parses_and_finds_what_it_imports(text: str) -> None:
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("dj_queue", "django.")):
            module = importlib.import_module(node.module)
            for alias in node.names:
                found = hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
                assert found, alias.name


@pytest.mark.parametrize("text", blocks("python"))
def test_options_in_settings_are_valid(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("queue", "direct"):
        monkeypatch.setitem(settings.DATABASES, name, settings.DATABASES["default"])
    for options in options_in(parse(text)):
        load_config(tasks={"default": {"BACKEND": "dj_queue.backend.DjQueueBackend", "OPTIONS": options}}, env={})


def options_in(module: ast.Module) -> Iterator[dict[str, Any]]:
    """The values under "OPTIONS" of an alias of TASKS. A database's OPTIONS have no option of ours."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Dict):
            continue
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        if "OPTIONS" in keys and "ENGINE" not in keys:
            value = node.values[keys.index("OPTIONS")]
            yield eval(compile(ast.Expression(value), "block", "eval"), {})


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_parses(text: str) -> None:
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("text", blocks("json"))
def test_json_parses(text: str) -> None:
    json.loads(text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_says_its_language(document: Path) -> None:
    opening = re.findall(r"^```(.*)$", document.read_text(), re.MULTILINE)[::2]
    assert set(opening) <= {"bash", "python", "yaml", "json", "sql", ""}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = document.parent / path if path else document
        assert place.exists(), target
        headings = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_every_page_can_be_found_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name})" in readme or f"docs/{page.name}#" in readme, page.name
