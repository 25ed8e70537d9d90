"""Make the pages that are tables of the code: `python docs/generate.py`, and `--check` to see whether they are stale.

    docs/settings.md     from backend.settings and backend.control_options
    docs/http.md         from the OpenAPI document of backend.app
    docs/metrics.md      from what GET /metrics answers
    docs/strategies.md   from uncertainty.strategies and uncertainty.registry
    docs/cli.md          from the typer app askfirst.cli
    deploy/env.example   from backend.settings

tests/unit/docs/test_docs_are_generated.py fails while a page is stale.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

NOTE = "<!-- Made by docs/generate.py from the code. Change the code, then run it. -->"
# What docker-compose.yml sets itself, so that the containers find each other.
SET_BY_COMPOSE = frozenset(
    {
        "MODEL_DIR",
        "ASKFIRST_REDIS_URL",
        "LOCAL_FILES_DOCUMENT_ROOT",
        "HOST",
        "PORT",
        "LABEL_STUDIO_URL",
        "LABEL_STUDIO_API_KEY",
        "ASKFIRST_PUBLIC_URL",
        "ASKFIRST_WEBHOOK_SECRET",
    }
)
# Gauges come from the service by name alone; what they mean stands here. One without a meaning stops this program.
GAUGES = {
    "askfirst_state_readable": "1, or 0 while the shared state in Redis could not be read for this scrape",
    "askfirst_redis_up": "1, or 0 while Redis does not answer; the gauges below are absent then",
    "askfirst_projects": "connected projects",
    "askfirst_queue_waiting_fast": "jobs waiting for the fast worker: refits and new orders; 0 most of the time",
    "askfirst_queue_waiting_slow": "jobs waiting for the slow worker: embeddings",
}
TYPES = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; cells may hold anything."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ").strip() for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


# ---------------------------------------------------------------------- settings
def settings_page() -> str:
    from backend.control_options import wanted_values
    from backend.settings import PREFIX, RETIRED, settings_table

    rows = []
    for row in settings_table():
        first, *others = row["names"].split(", ")
        names = code(first) + (f" (or {', '.join(map(code, others))})" if others else "")
        rows.append((names, code(_as_written(row["default"])) or "empty", row["unit"], row["help"]))
    options = [(code(name), wanted) for name, wanted in wanted_values().items()]
    return f"""# Settings

Environment variables of web process and workers, read once at their start. An empty variable counts as not set. A
variable that starts with `{PREFIX}` and is not in this table stops the start, since it is a spelling mistake; so does
a value that cannot be used. `askfirst settings` prints the same table.

{table(("variable", "default", "unit", "meaning"), rows)}

## For one project

Attributes of the control tag in the labelling config, `<Choices name="label" toName="image" model_strategy="margin">`,
or *extra params* of the backend in Label Studio (Settings > Model), `{{"strategy": "margin"}}`. The tag wins over extra
params, and both over the settings above. Where several controls are answered, `model_weight`, `model_inputs` and
`model_prelabel_above` are those of their own tag; of the others the first tag that gives one speaks for the project.

{table(("attribute", "value"), options)}

## Names of other times

{table(("variable", "what to do instead"), [(code(name), advice) for name, advice in RETIRED.items()])}
"""


def _as_written(default: str) -> str:
    """A default as one writes it in an environment."""
    return default.lower() if default in ("True", "False") else default


# ---------------------------------------------------------------------- deploy/env.example
ENV_HEAD = """\
# Environment of docker-compose.yml. `sh deploy/new-env.sh` copies this file to .env and fills in the secrets.
# Made by docs/generate.py; a line with a leading # shows the default.

# --- secrets
# Token with which the backend talks to Label Studio. At the first start Label Studio gives it to its first user; it
# must have 40 hexadecimal digits then. Later, better: a personal access token made in Label Studio under Account &
# Settings.
LABEL_STUDIO_API_KEY=
# First user of Label Studio; both are read at the first start only.
LABEL_STUDIO_USERNAME=admin@example.com
LABEL_STUDIO_PASSWORD=
# {webhook_help}
ASKFIRST_WEBHOOK_SECRET=

# --- addresses
# Interface of this machine on which both are published; 0.0.0.0: all of them.
#BIND_ADDRESS=127.0.0.1
#LABEL_STUDIO_PUBLISHED_PORT=8080
#BACKEND_PUBLISHED_PORT=9090
# Label Studio's address in people's browsers, if it is not http://localhost:8080.
#LABEL_STUDIO_PUBLIC_URL=http://localhost:8080
# For a Label Studio outside of this compose file. On this machine: http://host.docker.internal:8080
#LABEL_STUDIO_URL=http://label-studio:8080
# This backend as that Label Studio reaches it. The host name needs a dot, or must be localhost.
#ASKFIRST_PUBLIC_URL=http://backend.internal:9090

# --- folders and resources
# Images that Label Studio serves as local files, under /files/images.
#IMAGES_DIR=./images
#WORKER_FAST_MEMORY=4g
#WORKER_SLOW_MEMORY=6g
#WORKER_TRAIN_MEMORY=8g
# Where the image takes PyTorch from. With CUDA, for fine-tuning on a GPU: https://download.pytorch.org/whl/cu128
#TORCH_INDEX=https://download.pytorch.org/whl/cpu

# --- settings of the backend
"""


def env_example() -> str:
    from backend.settings import settings_table

    rows = {row["names"].split(", ")[0]: row for row in settings_table()}
    parts = [ENV_HEAD.format(webhook_help=rows["ASKFIRST_WEBHOOK_SECRET"]["help"])]
    parts += [
        f"# {row['help']} ({row['unit']})\n#{name}={_as_written(row['default'])}\n"
        for name, row in rows.items()
        if name not in SET_BY_COMPOSE
    ]
    return "".join(parts)


# ---------------------------------------------------------------------- HTTP
def http_page() -> str:
    from backend.routes import BODY_LIMITS

    document = _openapi()
    common = _common_errors(document)
    small = " and ".join(code(path) for path in BODY_LIMITS)
    (limit,) = set(BODY_LIMITS.values())
    summaries = [(code(f"{method} {path}"), route["summary"]) for method, path, route in _routes(document)]
    parts = [
        f"""# HTTP

Port 9090 by default. The first part of the table is what Label Studio calls; the rest is for people, scripts and
Prometheus. The same as an OpenAPI document: `GET /openapi/openapi.json`.

With `BASIC_AUTH_USER` and `BASIC_AUTH_PASS` set, every route wants HTTP basic auth; `/webhook` opens by the header
`X-Ask-First-Secret` too, since Label Studio sends no basic auth with its events. Errors are JSON of one shape,
`{{"error": code, "message": text, "request_id": id}}`; the id is in the header `X-Request-ID` of every answer and in
the log. Every route may answer {", ".join(common)} in this way; its own section tells what else it answers.

A body of {small} may have at most {limit:,} bytes, any other as many as
`ASKFIRST_MAX_BODY_BYTES` says: Label Studio tells of a whole import, some 500 bytes a task, in one event.

{table(("route", "what it is for"), summaries)}
"""
    ]
    parts += [_route(document, common, method, path, route) for method, path, route in _routes(document)]
    return "\n".join(parts)


def _openapi() -> dict[str, Any]:
    from backend.app import create_app
    from backend.fake_service import FakeService
    from backend.settings import Settings

    app = create_app(Settings(), FakeService())
    return dict(app.test_client().get("/openapi/openapi.json").get_json())


def _routes(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, description); Label Studio's own calls first."""
    found = [
        (method.upper(), path, route)
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    ]
    theirs = ("/health", "/setup", "/predict", "/webhook", "/versions", "/job_status")
    return iter(sorted(found, key=lambda r: theirs.index(r[1]) if r[1] in theirs else len(theirs)))


def _common_errors(document: dict[str, Any]) -> list[str]:
    """Statuses that every route has."""
    return sorted(set.intersection(*(set(route["responses"]) - {"200"} for _, _, route in _routes(document))))


def _route(document: dict[str, Any], common: list[str], method: str, path: str, route: dict[str, Any]) -> str:
    parts = [f"## {method} {path}\n", f"{route['summary']}. {route.get('description', '')}".strip() + "\n"]
    body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        parts.append("Body:\n\n" + _fields(document, body) + "\n")
    if route.get("parameters"):
        rows = [
            (code(p["name"]), p["in"], _type(document, p["schema"]), "yes" if p.get("required") else "no")
            for p in route["parameters"]
        ]
        parts.append(table(("parameter", "in", "type", "required"), rows) + "\n")
    answers: list[tuple[str, ...]] = []
    for status, answer in sorted(route["responses"].items()):
        content = answer.get("content", {})
        schemas = [c["schema"] for c in content.values()]
        if status in common and all("ErrorAnswer" in schema.get("$ref", "") for schema in schemas):
            continue
        answers.append((status, ", ".join(content), " or ".join(_answer(document, s) for s in schemas)))
    parts.append(table(("status", "content type", "answer"), answers) + "\n")
    return "\n".join(parts)


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(document["components"]["schemas"][name]) if name else schema


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> str:
    model = _resolve(document, schema)
    rows = [
        (
            code(name),
            _type(document, field),
            "yes" if name in model.get("required", []) else "no",
            field.get("description", ""),
        )
        for name, field in model.get("properties", {}).items()
    ]
    return table(("key", "type", "required", "meaning"), rows)


def _answer(document: dict[str, Any], schema: dict[str, Any]) -> str:
    model = _resolve(document, schema)
    if "properties" not in model:
        return model.get("type", "")
    return code("{" + ", ".join(json.dumps(name) for name in model["properties"]) + "}")


def _type(document: dict[str, Any], schema: dict[str, Any]) -> str:
    model = _resolve(document, schema)
    kinds = [_type(document, kind) for kind in model.get("anyOf", [])] or [model.get("type", "anything")]
    return " or ".join(dict.fromkeys(kinds))


# ---------------------------------------------------------------------- metrics
def metrics_page() -> str:
    counted, gauges = [], []
    for family in _families():
        if family.type == "gauge":
            gauges.append((code(family.name), GAUGES[family.name]))
            continue
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        name = family.name + ("_total" if family.type == "counter" else "")
        counted.append((code(name), family.type, ", ".join(map(code, labels)), family.documentation))
    return f"""# Metrics

`GET /metrics` answers Prometheus text. With several gunicorn workers one scrape adds up what all of them counted.

{table(("metric", "type", "labels", "meaning"), counted)}

Gauges are read from the shared state when they are asked for:

{table(("gauge", "meaning"), gauges)}

Worth an alert: `askfirst_redis_up == 0`; `askfirst_queue_waiting_fast > 5` for some minutes (the fast worker is away or
too slow); `rate(askfirst_http_requests_total{{status=~"5.."}}[5m]) > 0`.
"""


def _families() -> list[Any]:
    """Metric families of an app that answered something, in the order of the text."""
    from prometheus_client.parser import text_string_to_metric_families

    from backend.app import create_app
    from backend.dispatch import FAST, SLOW
    from backend.fake_service import FakeService
    from backend.service import BackendService
    from backend.settings import Settings

    workshop = SimpleNamespace(settings=Settings(), state=SimpleNamespace(projects=tuple))
    dispatcher = SimpleNamespace(depth=lambda: {FAST: 0, SLOW: 0})
    fake = FakeService(gauges=BackendService(workshop, dispatcher).metrics())  # type: ignore[arg-type]
    client = create_app(Settings(), fake).test_client()
    client.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 1}})
    families = text_string_to_metric_families(client.get("/metrics").get_data(as_text=True))
    return [family for family in families if not family.name.endswith("_created")]


# ---------------------------------------------------------------------- strategies
def strategies_page() -> str:
    from backend.settings import Settings
    from uncertainty.predictives import MEANING
    from uncertainty.registry import list_methods
    from uncertainty.strategies import list_strategies

    default = Settings().strategy
    strategies = [
        (
            code(s.name) + (" (default)" if s.name == default else ""),
            s.summary,
            "yes" if s.needs_predictions else "no",
            "yes" if s.needs_samples else "no",
            s.paper,
        )
        for s in list_strategies()
    ]
    methods = [
        (code(m.name), m.unit if m.unit != "1" else "-", f"{m.upper(1, 10):.3g}", m.min_samples, m.paper)
        for m in list_methods()
    ]
    return f"""# Strategies

How the next tasks are chosen: `ASKFIRST_STRATEGY`, or `model_strategy` on the control tag of a project. Strategies that
need predictions choose by coverage alone (`maxherding`) until there is a model. Whatever the strategy, at most one of a
group of near-duplicates is in a batch, and a share of every batch (`ASKFIRST_EXPLORE`) is drawn uniformly at random.

{table(("name", "chooses", "needs predictions", "draws samples", "source"), strategies)}

## Posteriors

A strategy that draws posterior samples takes them from a linear head on the embeddings, fitted to the labels known.
Of which kind is said behind an `@`: `bald@dropout`, `power_epig@bootstrap`; without it, `laplace`. This holds wherever
a strategy is named, so `askfirst simulate --strategy bald,bald@bootstrap,bald@dropout` compares them. Until labels of
two classes are known all of them choose by coverage (`maxherding`).

{table(("name", "samples", "source"), [(code(name), *said) for name, said in MEANING.items()])}

Members of a snapshot or deep ensemble come with fine-tuning, views of test-time augmentation with the images. An order
is made from one frozen embedding of each image, so no name here reaches them. They are functions of the library,
`stack_members` and `test_time_augmentation` in `uncertainty.predictives`, for code that trains networks; a `Pool` whose
`log_probs` hold several samples is used as it is.

## Scores

What strategies measure uncertainty by. All of them grow with uncertainty; the largest value is that for ten classes.

{table(("name", "unit", "largest", "posterior samples needed", "source"), methods)}
"""


# ---------------------------------------------------------------------- commands
def cli_page() -> str:
    import typer

    from askfirst.cli import app

    group: Any = typer.main.get_command(app)
    parts = [
        f"# The command `askfirst`\n\n{app.info.help}\n",
        table(
            ("command", "does"),
            ((code(f"askfirst {name}"), _paragraphs(command.help)[0]) for name, command in group.commands.items()),
        )
        + "\n",
    ]
    for name, command in group.commands.items():
        parts.append(f"## askfirst {name}\n\n" + "\n\n".join(_paragraphs(command.help)) + "\n")
        rows = [(code(_usage(p)), _default(p), p.help or "") for p in command.params if p.name != "help"]
        if rows:
            parts.append(table(("option", "default", "meaning"), rows) + "\n")
    return "\n".join(parts)


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(p.split()) for p in (text or "").split("\n\n")]


def _usage(parameter: Any) -> str:
    kind = TYPES.get(parameter.type_descriptor.annotation, "")
    if parameter.param_type_name == "argument":
        return parameter.name.upper()
    return ", ".join(parameter.opts) + ("" if parameter.is_flag or not kind else f" {kind}")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default is None or parameter.is_flag else code(parameter.default)


# ---------------------------------------------------------------------- all of them
PAGES: dict[str, Callable[[], str]] = {
    "docs/settings.md": settings_page,
    "docs/http.md": http_page,
    "docs/metrics.md": metrics_page,
    "docs/strategies.md": strategies_page,
    "docs/cli.md": cli_page,
    "deploy/env.example": env_example,
}


def render(name: str) -> str:
    """A page as it should be."""
    text = PAGES[name]()
    if name.endswith(".md"):
        title, rest = text.split("\n", 1)
        text = f"{title}\n\n{NOTE}\n{rest}"
    return text.rstrip("\n") + "\n"


def is_stale(name: str) -> bool:
    """Whether the page on disk is missing or another one."""
    path = ROOT / name
    return not path.is_file() or path.read_text(encoding="utf-8") != render(name)


def main(argv: list[str]) -> int:
    """Status 1: with --check, when a page is stale."""
    # The apps made here answer requests of ours, which is nobody's business.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    stale = [name for name in PAGES if is_stale(name)]
    for name in stale:
        if "--check" not in argv:
            (ROOT / name).write_text(render(name), encoding="utf-8")
        print(f"{'stale' if '--check' in argv else 'written'}: {name}")
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
