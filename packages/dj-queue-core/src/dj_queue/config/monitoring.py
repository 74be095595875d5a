"""The setting that protects what `dj_queue.urls` shows."""

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

TOKEN_SETTING = "DJ_QUEUE_OBSERVABILITY_TOKEN"


def observability_token() -> str | None:
    """The bearer token to ask for; None where anybody may look. Raises `ImproperlyConfigured`."""
    token = getattr(settings, TOKEN_SETTING, None)
    if isinstance(token, str) and token != token.strip():
        raise ImproperlyConfigured(
            f"{TOKEN_SETTING}: expected a text without blanks or line breaks at its ends, which no header keeps,"
            " got one that has some. Strip it where it is read, as from a file, and verify with"
            " `python manage.py check`."
        )
    if token is None or isinstance(token, str):
        return token or None
    # Its type and not its value: this text goes into logs.
    raise ImproperlyConfigured(
        f"{TOKEN_SETTING}: expected a string, or None for no protection, got a value of the type"
        f" {type(token).__name__}. Set it to a text, and verify with `python manage.py check`."
    )
