"""The console's place in the admin: the default site and custom ones."""

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("site", ["admin", "console"])
def test_the_apps_index_leads_to_the_dashboard(admin_client: Client, site: str) -> None:
    answer = admin_client.get(f"/{site}/dj_queue/")
    assert (answer.status_code, answer["Location"]) == (302, f"/{site}/dj_queue/dashboard/")
    assert admin_client.get(answer["Location"]).status_code == 200


def test_other_apps_keep_their_index(admin_client: Client) -> None:
    assert admin_client.get("/admin/auth/").status_code == 200
    assert admin_client.get("/admin/none/").status_code == 404


def test_the_app_is_listed_first_with_the_dashboard_alone(admin_client: Client) -> None:
    apps = admin_client.get("/admin/").context["app_list"]
    assert apps[0]["app_label"] == "dj_queue"
    assert [model["object_name"] for model in apps[0]["models"]] == ["Dashboard"]


def test_an_unknown_backend_is_not_found(admin_client: Client) -> None:
    assert admin_client.get("/admin/dj_queue/dashboard/?backend=nowhere").status_code == 404
