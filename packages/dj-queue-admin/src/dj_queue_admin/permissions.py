"""Who may see and do what, in the words of Django's permissions.

    enter     any active member of the staff (the site's own rule): pages, names, states, counts, times
    contents  `view` or `change` on the model: arguments, results, messages, tracebacks, metadata
    change    `change` on the model: retry, enqueue again, pause, resume, run now
    delete    `delete` on the model: discard, clear, unschedule
    operate   `dj_queue.operate_queue` allows all that needs `change`, on every model, and nothing that deletes

The model is the one whose page the button is on: Job for queues' jobs and their drill-downs, FailedExecution
for its own list, Pause for pausing and resuming a queue.
"""

from typing import Final, Literal

from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest

type Verb = Literal["retry", "enqueue", "pause", "resume", "run", "discard", "clear", "unschedule"]

OPERATE: Final = "dj_queue.operate_queue"

_NEEDS: Final[dict[Verb, str]] = {
    "retry": "change",
    "enqueue": "change",
    "pause": "change",
    "resume": "change",
    "run": "change",
    "discard": "delete",
    "clear": "delete",
    "unschedule": "delete",
}


def may(request: HttpRequest, verb: Verb, model: type[Model]) -> bool:
    """Whether the visitor may do this to rows of the model."""
    needed = _NEEDS[verb]
    return _has(request, needed, model) or (needed == "change" and request.user.has_perm(OPERATE))


def require(request: HttpRequest, verb: Verb, model: type[Model]) -> None:
    """Raise `PermissionDenied`, which Django answers with 403, if the visitor may not."""
    if not may(request, verb, model):
        raise PermissionDenied(f"To {verb}, ask for the permission {named(verb, model)}.")


def may_read(request: HttpRequest, model: type[Model]) -> bool:
    """Whether the visitor may read what rows of the model contain."""
    return _has(request, "view", model) or _has(request, "change", model)


def named(verb: Verb, model: type[Model]) -> str:
    """The permission that a verb needs, as administrators know it."""
    return _permission(_NEEDS[verb], model)


def _has(request: HttpRequest, action: str, model: type[Model]) -> bool:
    return request.user.has_perm(_permission(action, model))


def _permission(action: str, model: type[Model]) -> str:
    return f"{model._meta.app_label}.{get_permission_codename(action, model._meta)}"
