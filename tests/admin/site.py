"""A second admin site with the console on it."""

from django.contrib.admin import AdminSite

from dj_queue_admin.admin import register

console = AdminSite(name="console")
register(console)
