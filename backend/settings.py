"""Every setting of the product as one table: name, default, unit, help. Read once, at start.

Conventional names of Label Studio backends are kept (`LABEL_STUDIO_URL`, `PORT`, ...); our own carry the prefix
`ASKFIRST_`. A misspelt `ASKFIRST_` variable stops the start and is named. `docs/settings.md` is made from this table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import ConfigError

PREFIX = "ASKFIRST_"
# Names that people still paste from 1.x posts: accepted nowhere, answered with what to use instead.
RETIRED = {
    "LABEL_STUDIO_USE_REDIS": "Redis is always used; set ASKFIRST_REDIS_URL",
    "REDIS_HOST": "set ASKFIRST_REDIS_URL=redis://HOST:PORT/0",
    "REDIS_PORT": "set ASKFIRST_REDIS_URL=redis://HOST:PORT/0",
    "RQ_QUEUE_NAME": "the queues are named askfirst-fast and askfirst-slow",
    "LABEL_STUDIO_ML_BACKEND_V2": "the 2.x protocol is the only one spoken",
}


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _setting(default: Any, unit: str, help: str, *names: str, **constraints: Any) -> Any:
    return Field(
        default=default,
        validation_alias=AliasChoices(*names),
        description=help,
        json_schema_extra={"unit": unit, "names": list(names)},
        **constraints,
    )


def _three_numbers(value: Any) -> Any:
    if not isinstance(value, str):
        return value or None
    try:
        red, green, blue = (float(part) for part in value.split(","))
    except ValueError:
        raise ValueError("must be three numbers with commas between them, as 0.485,0.456,0.406") from None
    return red, green, blue


Triple = Annotated[tuple[float, float, float] | None, BeforeValidator(_three_numbers)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]


class Settings(BaseSettings):
    """Immutable settings of one process."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    # --- Label Studio
    label_studio_url: str = _setting(
        "http://localhost:8080",
        "URL",
        "Label Studio's address as this backend reaches it, with http:// or https://",
        "LABEL_STUDIO_URL",
        "LABEL_STUDIO_HOST",
    )
    label_studio_api_key: SecretStr = _setting(
        SecretStr(""),
        "token",
        "personal access token (recommended) or legacy token of a Label Studio user",
        "LABEL_STUDIO_API_KEY",
        "LABEL_STUDIO_ACCESS_TOKEN",
    )
    verify_ssl: bool = _setting(
        True, "true/false", "check TLS certificates of Label Studio and image hosts", "VERIFY_SSL"
    )
    ls_timeout_s: float = _setting(
        60.0,
        "seconds",
        "longest wait for one answer of Label Studio; bulk imports get ten times this",
        "ASKFIRST_LS_TIMEOUT_S",
        gt=0,
    )

    # --- web process
    port: int = _setting(9090, "port", "port of the web process", "PORT", ge=1, le=65535)
    host: str = _setting("0.0.0.0", "address", "address the web process binds to", "HOST")
    workers: int = _setting(1, "processes", "gunicorn worker processes", "WORKERS", ge=1)
    threads: int = _setting(8, "threads", "threads of each gunicorn worker", "THREADS", ge=1)
    log_level: str = _setting("INFO", "name", "DEBUG, INFO, WARNING or ERROR", "LOG_LEVEL")
    basic_auth_user: str = _setting(
        "",
        "text",
        "user name for HTTP basic auth on all routes; empty: no auth",
        "BASIC_AUTH_USER",
        "ML_SERVER_BASIC_AUTH_USER",
    )
    basic_auth_pass: SecretStr = _setting(
        SecretStr(""), "text", "password for HTTP basic auth", "BASIC_AUTH_PASS", "ML_SERVER_BASIC_AUTH_PASS"
    )
    webhook_secret: SecretStr = _setting(
        SecretStr(""),
        "text",
        "value of the header X-Ask-First-Secret that our webhook carries; empty: made once and kept in MODEL_DIR",
        "ASKFIRST_WEBHOOK_SECRET",
    )
    public_url: str = _setting(
        "",
        "URL",
        "this backend's address as Label Studio reaches it; empty: http://localhost:PORT",
        "ASKFIRST_PUBLIC_URL",
    )
    max_body_bytes: int = _setting(
        64 * 2**20, "bytes", "largest request body accepted", "ASKFIRST_MAX_BODY_BYTES", gt=0
    )

    # --- where things are kept
    model_dir: Path = _setting(Path("data"), "folder", "versions, embeddings and caches", "MODEL_DIR")
    redis_url: str = _setting(
        "redis://localhost:6379/0",
        "URL",
        "Redis for jobs, locks and counters; nothing in it is irreplaceable",
        "ASKFIRST_REDIS_URL",
        "REDIS_URL",
    )
    image_cache_bytes: int = _setting(
        2 * 2**30,
        "bytes",
        "disk for downloaded images; the longest unused go first; 0: keep none",
        "ASKFIRST_IMAGE_CACHE_BYTES",
        ge=0,
    )
    image_max_bytes: int = _setting(
        50 * 2**20, "bytes", "largest image file that is read", "ASKFIRST_IMAGE_MAX_BYTES", gt=0
    )
    image_timeout_s: float = _setting(
        20.0, "seconds", "longest time to fetch one image", "ASKFIRST_IMAGE_TIMEOUT_S", gt=0
    )
    local_files_document_root: OptionalPath = _setting(
        None,
        "folder",
        "read /data/local-files/?d=... of Label Studio straight from this folder; empty: over HTTP",
        "LOCAL_FILES_DOCUMENT_ROOT",
    )
    label_studio_media_dir: OptionalPath = _setting(
        None,
        "folder",
        "read /data/upload/... of Label Studio straight from this folder; empty: over HTTP",
        "ASKFIRST_LABEL_STUDIO_MEDIA_DIR",
    )

    # --- representation
    backbone: str = _setting(
        "mobilenet_v2",
        "name",
        "torchvision classifier whose penultimate activations represent an image",
        "ASKFIRST_BACKBONE",
    )
    weights: str = _setting(
        "",
        "path, URL or 'torchvision'",
        "weights of the backbone; empty: features are learnt from the pool itself, without labels",
        "ASKFIRST_WEIGHTS",
    )
    weights_mean: Triple = _setting(
        None, "r,g,b in 0..1", "mean the weights expect; empty: what comes with the weights", "ASKFIRST_WEIGHTS_MEAN"
    )
    weights_std: Triple = _setting(
        None, "r,g,b in 0..1", "standard deviation the weights expect", "ASKFIRST_WEIGHTS_STD"
    )
    input_size: int = _setting(
        0,
        "pixels",
        "side of the square given to the backbone; 0: what comes with the weights",
        "ASKFIRST_INPUT_SIZE",
        ge=0,
        le=2048,
    )

    # --- learning and selection
    start_training_each_n_updates: int = _setting(
        1,
        "labels",
        "new labels between two refits; 0: only the Start Training button refits",
        "START_TRAINING_EACH_N_UPDATES",
        ge=0,
    )
    strategy: str = _setting(
        "auto",
        "name",
        "selection strategy, see `askfirst strategies`; name@posterior, e.g. bald@dropout, where it draws samples",
        "ASKFIRST_STRATEGY",
        "MODEL_STRATEGY",
    )
    explore: float = _setting(
        0.1, "share", "part of every batch drawn uniformly at random", "ASKFIRST_EXPLORE", "MODEL_EXPLORE", ge=0, le=1
    )
    quota: float = _setting(
        0.0,
        "share",
        "part of every batch that goes to classes with few labels while the predicted classes are lopsided",
        "ASKFIRST_QUOTA",
        ge=0,
        le=1,
    )
    veto: float = _setting(
        0.0,
        "share",
        "part of the pool, the least like anything else, that is not asked for (one a batch is, as a probe for junk)",
        "ASKFIRST_VETO",
        ge=0,
        le=0.5,
    )
    learn_from_skips: bool = _setting(
        True,
        "true/false",
        "tasks that look like those people skipped are asked last, once the two can be told apart (one a batch is asked"
        " all the same, as a probe)",
        "ASKFIRST_LEARN_FROM_SKIPS",
    )
    audit_share: float = _setting(
        0.1,
        "share",
        "part of the tasks, chosen by hash before any score, that measures accuracy and is never trained on; they get"
        " as large a part of the queue until there are enough",
        "ASKFIRST_AUDIT_SHARE",
        ge=0,
        le=0.5,
    )
    prelabel_above: float = _setting(
        0.9,
        "probability",
        "show the model's answer to annotators only above this calibrated confidence; 1: never",
        "ASKFIRST_PRELABEL_ABOVE",
        "MODEL_PRELABEL_ABOVE",
        ge=0,
        le=1,
    )
    seed: int = _setting(0, "number", "seed of every random choice", "ASKFIRST_SEED")

    # --- fine-tuning
    tune: bool = _setting(
        True,
        "true/false",
        "fine-tune the backbone on the project's labels, in the background, where there are weights to start from; what"
        " the gate lets through takes over",
        "ASKFIRST_TUNE",
    )
    tune_from: int = _setting(
        200,
        "labels",
        "labels before the first fine-tuning; the next ones at each doubling",
        "ASKFIRST_TUNE_FROM",
        ge=20,
    )
    tune_epochs: int = _setting(
        20,
        "epochs",
        "passes over the labels in one run, at most; of few labels one epoch has several passes, so that a run has 200"
        " steps of 32 images all the same",
        "ASKFIRST_TUNE_EPOCHS",
        ge=1,
    )
    tune_limit_s: float = _setting(
        4 * 3600.0,
        "seconds",
        "longest run; the best so far is kept",
        "ASKFIRST_TUNE_LIMIT_S",
        gt=0,
        allow_inf_nan=False,
    )
    tune_flips: Literal["none", "horizontal", "both"] = _setting(
        "none",
        "name",
        "none, horizontal or both: how images may be turned over without changing their label; in training, and for the"
        " features of a fine-tuned network: the mean over 2 (horizontal) or 4 (both) views, in as many times the time",
        "ASKFIRST_TUNE_FLIPS",
    )
    tune_augmentation: Literal["none", "light", "randaugment"] = _setting(
        "light",
        "name",
        "none, light (crops, and the flips that are allowed) or randaugment (also two changes of colour or shape: for"
        " labels that survive those)",
        "ASKFIRST_TUNE_AUGMENTATION",
    )
    tune_mixing: Literal["none", "cutmix", "cutmix-object", "saliency"] = _setting(
        "none",
        "name",
        "none, cutmix, cutmix-object (labels by how much of each object is seen) or saliency (boxes where it is)",
        "ASKFIRST_TUNE_MIXING",
    )
    tune_masks: OptionalPath = _setting(
        None,
        "folder",
        "masks for cutmix-object and saliency, light where the object is: lesion7.png, lesion7_mask.png or"
        " lesion7_segmentation.png for lesion7.jpg; images without one, all if empty, are searched for what stands out",
        "ASKFIRST_TUNE_MASKS",
    )
    tune_pool: int = _setting(
        0,
        "images",
        "images without a label from which the network learns what the live model says of them, in steps twice as long;"
        " 0: none",
        "ASKFIRST_TUNE_POOL",
        ge=0,
    )
    tune_devices: int = _setting(
        1,
        "GPUs",
        "GPUs that fine-tune together, with a process each; without a GPU: processes that share the worker's threads,"
        " which is slower than one on a small machine. Above 1 the images of a run lie decoded in a file in MODEL_DIR,"
        " all of them, 200 KB each for an input of 224 pixels",
        "ASKFIRST_TUNE_DEVICES",
        ge=1,
    )

    # --- queue
    sprint_min: int = _setting(
        100,
        "tasks",
        "least number of tasks in a sprint (the quick push between two full pushes)",
        "ASKFIRST_SPRINT_MIN",
        ge=10,
    )
    import_chunk: int = _setting(
        500, "predictions", "predictions per request in a full push", "ASKFIRST_IMPORT_CHUNK", ge=1
    )
    quiet_s: float = _setting(
        60.0,
        "seconds",
        "time without any annotation after which old versions are deleted in Label Studio",
        "ASKFIRST_QUIET_S",
        ge=0,
    )
    keep_versions: int = _setting(
        50, "versions", "model versions kept on disk besides the live one", "ASKFIRST_KEEP_VERSIONS", ge=2
    )
    tick_s: int = _setting(15, "seconds", "time between two reconciliations with Label Studio", "ASKFIRST_TICK_S", ge=2)
    lease_s: float = _setting(
        10.0, "seconds", "a refresh whose worker is silent this long is given up", "ASKFIRST_LEASE_S", ge=2
    )
    torch_threads: int = _setting(
        0, "threads", "threads of a worker's numerics; 0: all cores but one", "ASKFIRST_TORCH_THREADS", ge=0
    )
    nice: int = _setting(
        10, "niceness", "how much workers stand back for Label Studio and the web process", "ASKFIRST_NICE", ge=0, le=19
    )

    @field_validator("label_studio_url", "public_url")
    @classmethod
    def _has_scheme(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `from_env` hands the environment over as values, so that tests need not touch os.environ.
        return (init_settings,)

    @property
    def worker_threads(self) -> int:
        """Threads of a worker's numerics: a core is left for Label Studio and the web process."""
        return self.torch_threads or max(1, (os.cpu_count() or 2) - 1)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings of an environment (default: this process's).

        Raises:
            ConfigError: naming every variable that cannot be used and what it wants.
        """
        env = os.environ if env is None else env
        names = {name: field for field, info in cls.model_fields.items() for name in _names(info)}
        unknown = sorted(k for k in env if k.startswith(PREFIX) and k not in names)
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(unknown)}; `askfirst settings` lists the known ones")
        values: dict[str, Any] = {}
        for name in names:  # the first name of a field wins over its aliases
            if env.get(name):
                values.setdefault(names[name], env[name])
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(e, cls) for e in error.errors())) from None

    @property
    def url_for_label_studio(self) -> str:
        """Address under which Label Studio reaches this backend."""
        return self.public_url or f"http://localhost:{self.port}"


def _names(info: Any) -> list[str]:
    return list(info.json_schema_extra["names"])


def _explain(error: Any, cls: type[Settings]) -> str:
    field = str(error["loc"][0])
    info = cls.model_fields.get(field) or next((i for i in cls.model_fields.values() if field in _names(i)), None)
    name = _names(info)[0] if info else field
    unit = info.json_schema_extra["unit"] if info else ""  # type: ignore[index]
    return f"{name}={error['input']!r} cannot be used ({unit}): {error['msg']}"


def _limits(info: FieldInfo) -> str:
    """The range of a setting in words; "" where the unit says it all."""
    found = {
        name: getattr(bound, name)
        for bound in info.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(bound, name)
    }
    low, high = found.get("ge"), found.get("le")
    if low is not None and high is not None:
        return "" if (low, high) == (0, 1) else f"{low:g} to {high:g}"
    if "gt" in found:
        return f"above {found['gt']:g}"
    return f"at least {low:g}" if low else ""


def settings_table() -> list[dict[str, str]]:
    """One row per setting: names, default, unit, help; source of docs/settings.md and `askfirst settings`."""
    rows = []
    for info in Settings.model_fields.values():
        default = info.default.get_secret_value() if isinstance(info.default, SecretStr) else info.default
        rows.append(
            {
                "names": ", ".join(_names(info)),
                "default": "" if default is None else str(default),
                "unit": ", ".join(filter(None, (str(info.json_schema_extra["unit"]), _limits(info)))),  # type: ignore[index]
                "help": info.description or "",
            }
        )
    return rows
