"""The same site without the lifespan, for gunicorn's asynchronous workers."""

from django.core.asgi import get_asgi_application

application = get_asgi_application()
