"""The dashboard: one page for a backend, one for each of its queues."""

from dj_queue_admin.dashboard.site import DashboardAdmin

__all__ = ["DashboardAdmin"]
