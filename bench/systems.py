"""What is measured: what to install for each system. All speak dj_queue's own settings and commands."""

from pathlib import Path

CORE = Path(__file__).resolve().parent.parent / "packages" / "dj-queue-core"

SYSTEMS = {
    "ours": [str(CORE), "psycopg[binary]"],  # built into a wheel, anew in every run
    "dj-queue-0.14.2": ["dj-queue==0.14.2", "psycopg[binary]"],
}
