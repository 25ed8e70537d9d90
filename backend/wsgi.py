"""Entry point of gunicorn: `gunicorn -c backend/gunicorn_conf.py backend.wsgi:app`."""

from .app import create_app
from .connect import webhook_secret
from .service import BackendService
from .settings import Settings
from .worker_context import build

settings = Settings.from_env()
app = create_app(settings, BackendService(*build(settings)), webhook_secret=webhook_secret(settings))
