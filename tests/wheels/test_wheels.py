"""What a user gets from the wheels, each alone and all together: `tox -e wheels-core`, `-admin`, ... `-all`."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

WHICH = os.environ["DJ_QUEUE_WHEELS"]
ADDONS = ["admin", "asgi", "gunicorn", "prometheus"]
INSTALLED = {
    "core": ["core"],
    "all": ["core", *ADDONS],
}.get(WHICH, ["core", WHICH])
DRIVERS = ["psycopg", "psycopg2", "MySQLdb"]
DJANGO = ["admin", "auth", "contenttypes", "sessions", "messages"]
ADMIN = [*(f"django.contrib.{app}" for app in DJANGO), "dj_queue_admin"]
ABSENT = [name for name in ADDONS if name not in INSTALLED]


def package(name: str) -> str:
    return "dj_queue" if name == "core" else f"dj_queue_{name}"


def told(name: str) -> Message:
    found = metadata.metadata(f"dj-queue-{name}")
    assert isinstance(found, Message)
    return found


def folder(name: str) -> Path:
    return Path(importlib.util.find_spec(package(name)).origin).parent


def django(*arguments: str, code: str = "", urls: bool = False, tmp_path: Path) -> str:
    """Run manage.py, or a program after `django.setup()`, in a project of its own."""
    (tmp_path / "project.py").write_text(
        f"""
SECRET_KEY = "x"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "project" if {urls} else "empty"
INSTALLED_APPS = ["dj_queue", *{ADMIN if "admin" in INSTALLED else []!r}]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
] if "django.contrib.admin" in INSTALLED_APPS else []
TEMPLATES = [{{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {{"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]}},
}}]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {str(tmp_path / "q.sqlite3")!r},
    "OPTIONS": {{"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"}}}}}}
TASKS = {{"default": {{"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": []}}}}


def __getattr__(name):
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import include, path
    return [path("dj_queue/", include("dj_queue.urls"))]
"""
    )
    (tmp_path / "empty.py").write_text("urlpatterns = []\n")
    (tmp_path / "jobs.py").write_text("from django.tasks import task\n\n@task\ndef add(a, b):\n    return a + b\n")
    command = ["-m", "django", *arguments] if arguments else ["-c", f"import django\ndjango.setup()\n{code}"]
    done = subprocess.run(
        [sys.executable, *command],
        env={"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "project", "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# ---- what is installed ------------------------------------------------------------------------------


def test_these_and_no_others_of_ours() -> None:
    ours = {name for name in metadata.packages_distributions() if name.startswith("dj_queue")}
    assert ours == {package(name) for name in INSTALLED}
    for name in ABSENT:
        assert importlib.util.find_spec(package(name)) is None


@pytest.mark.parametrize("name", INSTALLED)
def test_it_is_the_wheel(name: str) -> None:
    """Neither the checkout nor an editable installation of it."""
    assert folder(name).is_relative_to(sys.prefix)
    (direct,) = [file for file in metadata.files(f"dj-queue-{name}") or () if file.name == "direct_url.json"]
    assert ".whl" in direct.read_text()


@pytest.mark.parametrize("name", INSTALLED)
def test_every_module_can_be_imported_or_says_what_is_missing(name: str, tmp_path: Path) -> None:
    modules = [
        ".".join((package(name), *file.relative_to(folder(name)).with_suffix("").parts)).removesuffix(".__init__")
        for file in folder(name).rglob("*.py")
    ]
    code = f"""
import importlib
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if error.name in {DRIVERS!r} and name.startswith("dj_queue.dialects."):
            continue  # imported only where a database of its kind is configured
        assert type(error).__name__ == "MissingAddonError", (name, error)
        print(name)
"""
    closed = django(code=code, tmp_path=tmp_path).split()
    doors = {"asgi", "gunicorn"} & set(ABSENT) if name == "core" else set()
    assert sorted(closed) == sorted(f"dj_queue.contrib.{door}" for door in doors)


def test_core_knows_nothing_of_the_others_but_their_doors() -> None:
    doors = {"contrib/asgi.py", "contrib/gunicorn.py", "contrib/prometheus.py", "urls.py"}
    for file in folder("core").rglob("*.py"):
        if str(file.relative_to(folder("core"))) in doors:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [name for name in names if name.partition(".")[0] in map(package, ADDONS)], file


def test_nothing_more_than_is_needed() -> None:
    """What the others need is not here with core alone."""
    present = {distribution.name.lower().replace("_", "-") for distribution in metadata.distributions()}
    needed_by = {"prometheus": "prometheus-client", "gunicorn": "gunicorn"}
    for name, needed in needed_by.items():
        if name in ABSENT:
            assert needed not in present
    if WHICH != "all":
        assert not present & {"psycopg", "psycopg2", "mysqlclient", "setproctitle"}


# ---- metadata ---------------------------------------------------------------------------------------


def test_one_version() -> None:
    versions = {metadata.version(f"dj-queue-{name}") for name in INSTALLED}
    versions |= {importlib.import_module(package(name)).__version__ for name in INSTALLED}
    assert versions == {metadata.version("dj-queue-core")}


@pytest.mark.parametrize("name", INSTALLED)
def test_metadata(name: str) -> None:
    found = told(name)
    assert found["Name"] == f"dj-queue-{name}"
    assert found["License-Expression"] == "MIT"
    assert found["License-File"] == "LICENSE"
    assert found["Requires-Python"] == ">=3.12"
    assert found["Summary"]
    assert found.get_payload().startswith(f"# dj-queue-{name}")
    repository = "https://github.com/coriocactus/dj_queue"
    assert set(found.get_all("Project-URL") or []) == {
        f"Homepage, {repository}",
        f"Repository, {repository}",
        f"Issues, {repository}/issues",
        f"Documentation, {repository}/tree/main/docs",
        f"Changelog, {repository}/blob/main/CHANGELOG.md",
    }
    classifiers = found.get_all("Classifier") or []
    for needed in ("Framework :: Django :: 6.0", "Framework :: Django :: 6.1", "Typing :: Typed"):
        assert needed in classifiers
    assert [line for line in classifiers if line.startswith("Programming Language :: Python :: 3.")] == [
        f"Programming Language :: Python :: 3.{minor}" for minor in (12, 13, 14)
    ]


@pytest.mark.parametrize("name", INSTALLED)
def test_pictures_and_links_hold_on_a_package_index(name: str) -> None:
    """There, nothing is beside the description: each is an address of its own."""
    description = told(name).get_payload()
    assert told(name)["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)]+)\)", description)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


@pytest.mark.parametrize("name", INSTALLED)
def test_what_it_requires(name: str) -> None:
    plain = [line for line in told(name).get_all("Requires-Dist") or [] if "extra ==" not in line]
    if name == "core":
        assert sorted(line.partition(">")[0].strip() for line in plain) == ["croniter", "django", "pyyaml"]
    else:
        assert f"dj-queue-core=={metadata.version('dj-queue-core')}" in [line.replace(" ", "") for line in plain]


def test_cores_extras_lead_to_the_others() -> None:
    lines = told("core").get_all("Requires-Dist") or []
    for name in ADDONS:
        assert [line for line in lines if line.startswith(f"dj-queue-{name}==") and f"'{name}'" in line], (name, lines)
    assert set(told("core").get_all("Provides-Extra") or []) >= {*ADDONS, "postgres", "all"}


@pytest.mark.parametrize("name", INSTALLED)
def test_types_and_licence_are_inside_and_nothing_else_is(name: str) -> None:
    files = [file.as_posix() for file in metadata.files(f"dj-queue-{name}") or ()]
    assert f"{package(name)}/py.typed" in files
    assert [file for file in files if file.endswith(".dist-info/licenses/LICENSE")]
    tops = {file.partition("/")[0] for file in files if not file.endswith(".pyc")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {package(name)}


# ---- use --------------------------------------------------------------------------------------------


def test_a_project_works(tmp_path: Path) -> None:
    django("migrate", "--verbosity", "0", tmp_path=tmp_path)
    assert "no issues" in django("check", tmp_path=tmp_path)
    code = """
from dj_queue.operations.jobs import claim_ready_jobs, execute_claimed_job
from jobs import add
result = add.enqueue(3, 7)
for job in claim_ready_jobs(limit=1):
    execute_claimed_job(job.id)
result.refresh()
print(result.status, result.return_value)
"""
    assert django(code=code, tmp_path=tmp_path) == "SUCCESSFUL 10"


DOORS = {"asgi": "DjQueueLifespan", "gunicorn": "post_fork, worker_exit", "prometheus": "DjQueueCollector, registry"}


@pytest.mark.parametrize("name", DOORS)
def test_the_promised_paths(name: str, tmp_path: Path) -> None:
    """Open where the distribution is installed; where it is not, they say which to install."""
    code = f"""
from dj_queue.exceptions import DjQueueError, MissingAddonError
assert issubclass(MissingAddonError, DjQueueError) and issubclass(MissingAddonError, ImportError)
try:
    from dj_queue.contrib.{name} import {DOORS[name]}
    print(*(each and each.__name__ if hasattr(each, "__name__") else each for each in ({DOORS[name]},)))
except MissingAddonError as error:
    print(error)
"""
    said = django(code=code, tmp_path=tmp_path)
    if name not in ABSENT:
        assert said.startswith(DOORS[name].partition(",")[0])
    elif name == "prometheus":
        assert said == "None None"
    else:
        assert f"pip install dj-queue-{name}" in said


def test_the_metrics_route(tmp_path: Path) -> None:
    django("migrate", "--verbosity", "0", tmp_path=tmp_path)
    code = """
from django.test import Client
for route in ("stats.json", "metrics"):
    response = Client().get(f"/dj_queue/{route}")
    print(response.status_code, response.content.decode().splitlines()[0][:200])
"""
    stats, metrics = django(code=code, urls=True, tmp_path=tmp_path).splitlines()
    assert stats.startswith('200 {"backends"')
    if "prometheus" in ABSENT:
        assert metrics.startswith("503 ")
        assert "pip install dj-queue-prometheus" in metrics
    else:
        assert metrics.startswith("200 # HELP")
