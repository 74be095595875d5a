from django.core.asgi import get_asgi_application

from dj_queue.contrib.asgi import DjQueueLifespan

application = DjQueueLifespan(get_asgi_application())
