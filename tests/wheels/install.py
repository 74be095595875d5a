"""Install distributions of the workspace from the wheels in dist/, what they need from the index, into this Python.

    python tests/wheels/install.py PATH_OF_UV core|admin|prometheus|asgi|gunicorn|all

Builds the wheels first. The index may have distributions of the same names: they are never looked at.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
NAMES = ["core", "admin", "asgi", "gunicorn", "prometheus"]


def main(uv: str, which: str) -> None:
    if _stale():
        for old in DIST.glob("dj_queue_*"):
            old.unlink()
        # Each sdist too: the wheels come out of them.
        subprocess.run([uv, "build", "--quiet", "--all-packages", "--out-dir", DIST], cwd=ROOT, check=True)
    assert len(list(DIST.glob("dj_queue_*.tar.gz"))) == len(NAMES)
    wheels = {name: next(DIST.glob(f"dj_queue_{name}-*.whl")) for name in NAMES}
    constraints = DIST / "constraints.txt"
    constraints.write_text("".join(f"dj-queue-{name} @ {wheel.as_uri()}\n" for name, wheel in wheels.items()))
    wanted = "dj-queue-core[all]" if which == "all" else f"dj-queue-{which}"
    into = ["--python", sys.executable, "--constraints", str(constraints)]
    again = [f"--reinstall-package=dj-queue-{name}" for name in NAMES]
    subprocess.run([uv, "pip", "install", "--quiet", *into, *again, wanted, "pytest"], cwd=DIST, check=True)


def _stale() -> bool:
    built = [path.stat().st_mtime for path in DIST.glob("dj_queue_*")]
    sources = [path for path in (ROOT / "packages").rglob("*") if "__pycache__" not in path.parts]
    return len(built) != 2 * len(NAMES) or min(built) < max(path.stat().st_mtime for path in sources)


if __name__ == "__main__":
    main(*sys.argv[1:])
