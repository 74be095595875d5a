"""The URLs of the examples' project."""

from django.urls import include, path

urlpatterns = [path("dj_queue/", include("dj_queue.urls"))]
