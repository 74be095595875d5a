"""The test project's addresses: the admin's default site, and one of its own."""

from django.contrib import admin
from django.urls import path

from tests.admin.site import console, restricted

urlpatterns = [
    path("admin/", admin.site.urls),
    path("console/", console.urls),
    path("restricted/", restricted.urls),
]
