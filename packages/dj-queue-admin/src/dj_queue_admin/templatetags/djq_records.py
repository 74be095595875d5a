"""Filters for the templates of stored rows."""

from django import template

from dj_queue_admin.records import cells

register = template.Library()

register.filter("badge", cells.badge)
register.filter("moment", cells.moment)
