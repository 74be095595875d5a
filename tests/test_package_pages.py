"""What a package index shows of each distribution: its README, alone, and the addresses in its metadata."""

import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.once  # no database has a part in it, nor any version of Python

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/coriocactus/dj_queue"
RAW = "https://raw.githubusercontent.com/coriocactus/dj_queue/main/"
PROJECTS = {path.parent.name: path for path in sorted((ROOT / "packages").glob("*/pyproject.toml"))}


def readmes() -> dict[str, Path]:
    """The repository's own, and what each distribution names as its long description."""
    named = {
        name: path.parent / tomllib.loads(path.read_text())["project"]["readme"] for name, path in PROJECTS.items()
    }
    return {"repository": ROOT / "README.md", **named}


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_five() -> None:
    assert list(PROJECTS) == [f"dj-queue-{name}" for name in ("admin", "asgi", "core", "gunicorn", "prometheus")]


@pytest.mark.parametrize("name", PROJECTS)
def test_the_addresses_in_the_metadata(name: str) -> None:
    assert tomllib.loads(PROJECTS[name].read_text())["project"]["urls"] == {
        "Homepage": REPOSITORY,
        "Repository": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Documentation": f"{REPOSITORY}/tree/main/docs",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
    }


@pytest.mark.parametrize("name", readmes())
def test_pictures_are_files_of_the_repository_by_their_raw_address(name: str) -> None:
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readmes()[name].read_text()):
        assert target.startswith(RAW), target
        assert (ROOT / target.removeprefix(RAW)).is_file(), target


@pytest.mark.parametrize("name", readmes())
def test_links_need_nothing_beside_the_page(name: str) -> None:
    text = readmes()[name].read_text()
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors(readmes()[name]), target
        assert target.startswith(("https://", "#")), f"a package index has nothing at {target}"


@pytest.mark.parametrize("name", readmes())
def test_links_into_the_repository_lead_to_what_is_there(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", readmes()[name].read_text()):
        if not target.startswith(f"{REPOSITORY}/"):
            continue
        _, _, kind, branch, *rest = urlsplit(target).path.strip("/").split("/")
        place = ROOT.joinpath(*rest)
        assert branch == "main", target
        assert (kind, place.exists()) == ("tree" if place.is_dir() else "blob", True), target
        assert not urlsplit(target).fragment or urlsplit(target).fragment in anchors(place), target


@pytest.mark.parametrize("name", PROJECTS)
def test_a_distributions_page_stands_alone(name: str) -> None:
    """It says how to install what it is about, and its first line names it."""
    text = readmes()[name].read_text()
    assert text.startswith(f"# {name}\n")
    assert f"pip install {name}" in text
