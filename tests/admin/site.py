"""Other admin sites with the console on them: a plain one, and one whose rules are its project's own."""

from typing import Any, ClassVar

from django.contrib.admin import AdminSite
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from dj_queue.models import Dashboard
from dj_queue_admin.admin import register
from dj_queue_admin.dashboard import DashboardAdmin
from dj_queue_admin.records import MODEL_ADMINS

console = AdminSite(name="console")
register(console)


class Rules:
    """What the restricted site lets its visitors see; tests set it."""

    hidden: ClassVar[set[type[Model]]] = set()
    rows: ClassVar[dict[type[Model], dict[str, Any]]] = {}
    unseen: ClassVar[set[Any]] = set()  # ids of rows that `has_view_permission` refuses
    visitors: ClassVar[set[str]] = set()

    @classmethod
    def forget(cls) -> None:
        cls.hidden, cls.rows, cls.unseen, cls.visitors = set(), {}, set(), set()


class _Restricted(AdminSite):
    def has_permission(self, request: HttpRequest) -> bool:
        return request.user.get_username() in Rules.visitors


class _Own:
    model: type[Model]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.model not in Rules.hidden and getattr(obj, "pk", None) not in Rules.unseen

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)  # type: ignore[misc]
        return rows.filter(**Rules.rows.get(self.model, {}))


restricted = _Restricted(name="restricted")
register(restricted)
for model, model_admin in {**MODEL_ADMINS, Dashboard: DashboardAdmin}.items():
    restricted.unregister(model)
    restricted.register(model, type(f"Own{model_admin.__name__}", (_Own, model_admin), {}))
