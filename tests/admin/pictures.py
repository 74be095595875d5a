"""Takes the pictures in docs/: `python -m tests.admin.pictures [folder]`."""

import os
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.management import call_command
    from django.db import connections
    from django.test.testcases import LiveServerThread

    from tests.admin import scenery
    from tests.admin.browser import chromium

    settings.ALLOWED_HOSTS = ["localhost"]
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    folder.mkdir(parents=True, exist_ok=True)
    call_command("migrate", verbosity=0)
    User.objects.create_superuser("ada", "ada@example.org", "ada")
    scenery.fill()
    connections.close_all()
    server = LiveServerThread("localhost", StaticFilesHandler, connections_override={}, port=0)
    server.daemon = True
    server.start()
    server.is_ready.wait()
    try:
        with chromium() as browser:
            take(browser, f"http://localhost:{server.port}", folder)
    finally:
        server.terminate()


def take(browser: Any, address: str, folder: Path) -> None:
    from dj_queue.models import FailedExecution

    wide = {"width": 1320, "height": 900}
    context = browser.new_context(viewport=wide, device_scale_factor=1.5, locale="en-GB", timezone_id="Europe/Berlin")
    page = context.new_page()
    page.goto(f"{address}/admin/login/")
    page.fill("#id_username", "ada")
    page.fill("#id_password", "ada")
    page.press("#id_password", "Enter")
    page.wait_for_url("**/admin/**")
    page.add_init_script("localStorage.setItem('django.admin.navSidebarIsOpen', 'false')")

    def shoot(path: str, name: str, **options: Any) -> None:
        path = path if path.startswith("/") else f"/admin/dj_queue/dashboard/{path}"
        page.goto(f"{address}{path}")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=folder / f"{name}.png", **{"full_page": True, **options})

    shoot("", "dashboard")
    page.set_viewport_size({"width": 1320, "height": 1180})
    shoot("queue/webhooks/?state=failed", "dashboard-queue", full_page=False)
    page.set_viewport_size({"width": 1320, "height": 760})
    failed = FailedExecution.objects.filter(queue_name="webhooks").order_by("-pk")[0]
    shoot(f"/admin/dj_queue/job/{failed.job_id}/change/", "job")
    page.set_viewport_size({"width": 1320, "height": 480})
    shoot("/admin/dj_queue/failedexecution/groups/", "failed-groups")
    page.emulate_media(color_scheme="dark")
    shoot("", "dashboard-dark")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 360, "height": 800})
    shoot("", "dashboard-narrow")
    if folder != DOCS:
        shoot("queue/webhooks/?state=failed", "dashboard-queue-narrow")
        page.emulate_media(color_scheme="dark")
        shoot("queue/webhooks/?state=failed", "dashboard-queue-narrow-dark")


if __name__ == "__main__":
    main()
