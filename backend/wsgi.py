"""Entry point of gunicorn: `gunicorn -c backend/gunicorn_conf.py backend.wsgi:app`."""

import sys

from .app import create_app
from .connect import webhook_secret
from .service import BackendService
from .settings import Settings
from .worker_context import build

# Threads that come back from Redis wait for the interpreter up to this long; at the usual 5 ms a few requests at once
# hold each other up for a tenth of a second.
sys.setswitchinterval(0.0005)
settings = Settings.from_env()
app = create_app(settings, BackendService(*build(settings)), webhook_secret=webhook_secret(settings))
