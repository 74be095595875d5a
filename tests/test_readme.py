"""What the README says in code is true."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dj_queue.config import load_config
from dj_queue.config.options import DISPATCHER, OPTIONS, SCHEDULER, WORKER

pytestmark = pytest.mark.once  # no database has a part in it, nor any version of Python

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_quick_start_works(tmp_path: Path) -> None:
    """A new project, with the README's settings and its quick start, step by step."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    settings, database = blocks[0], blocks[1]
    tasks = next(block for block in blocks if block.startswith("# myapp/tasks.py"))
    use = next(block for block in blocks if "add.enqueue(3, 7)\nprint" in block)
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "__init__.py").touch()
    (tmp_path / "myapp" / "tasks.py").write_text(tasks)
    (tmp_path / "settings.py").write_text(
        f"from pathlib import Path\nBASE_DIR = Path({str(tmp_path)!r})\nSECRET_KEY = 'x'\n{settings}\n{database}"
    )
    program = tmp_path / "program.py"
    before, after = use.split("while not")
    program.write_text(
        "import subprocess, sys, time, django\ndjango.setup()\n"
        f"{before}\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'django', 'dj_queue'], stdout=subprocess.DEVNULL)\n"
        f"while not{after}\n"
        "worker.terminate()\nprint(worker.wait())\n"
    )
    environment = {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "django", "migrate")
    assert "no issues" in python("-m", "django", "check")
    first, second, code = python(str(program)).splitlines()
    assert first.endswith("READY")
    assert (second, code) == ("SUCCESSFUL 10", "0")


def test_the_table_of_options_is_complete() -> None:
    table = README[README.index("| option | default |") :]
    for name in [*OPTIONS, *WORKER, *DISPATCHER, *SCHEDULER]:
        assert f"`{name}`" in table, name


def test_the_defaults_in_the_table() -> None:
    config = load_config(tasks={"default": {"BACKEND": "dj_queue.backend.DjQueueBackend"}}, env={})
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, re.MULTILINE))
    for name, shown in rows.items():
        value = getattr(config, name, None)
        if name not in ("workers", "dispatchers", "scheduler", "recurring"):
            assert shown.strip(" `") == (f'"{value}"' if isinstance(value, str) else str(value)), name


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_package_depends_on_what_is_promised() -> None:
    project = tomllib.loads((ROOT / "packages/dj-queue-core/pyproject.toml").read_text())["project"]
    names = sorted(re.split(r"[<>=~ ]", requirement)[0] for requirement in project["dependencies"])
    assert names == ["croniter", "django", "pyyaml"]
