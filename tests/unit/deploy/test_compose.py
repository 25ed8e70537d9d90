"""docker-compose.yml, the image and .env agree with the code: names, commands, routes, files."""

import fnmatch
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from askfirst import cli
from askfirst.label_studio import VERSION as LABEL_STUDIO_VERSION
from backend.app import create_app
from backend.fake_service import FakeService
from backend.settings import PREFIX, Settings, settings_table
from backend.worker import ROLES
from deploy import healthcheck

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
OURS = ("backend", "worker-fast", "worker-slow", "worker-train", "tick")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / "deploy" / "env.example").read_text(encoding="utf-8")
SECRETS = {"LABEL_STUDIO_API_KEY": "0" * 40, "LABEL_STUDIO_PASSWORD": "secret-enough"}
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?:(?P<kind>:[-?])(?P<rest>(?:[^${}]|\$\{[^{}]*\})*))?\}")


def resolve(text, env):
    """`text` with ${NAME}, ${NAME:-default} and ${NAME:?message} replaced, as compose does it."""

    def value(match):
        found = env.get(match["name"])
        if not found and match["kind"] == ":?":
            raise KeyError(match["name"])
        return found or resolve(match["rest"] or "", env)

    return VARIABLE.sub(value, text)


def environment(service, env=SECRETS):
    return {name: resolve(str(text), env) for name, text in SERVICES[service]["environment"].items()}


def test_it_holds_label_studio_redis_and_our_five_processes():
    assert set(SERVICES) == {"label-studio", "redis", *OURS}


def test_label_studio_is_the_version_that_everything_is_tested_with():
    assert SERVICES["label-studio"]["image"] == f"heartexlabs/label-studio:{LABEL_STUDIO_VERSION}"
    pins = (ROOT / "requirements-label-studio.txt").read_text(encoding="utf-8")
    assert re.search(rf"^label-studio=={re.escape(LABEL_STUDIO_VERSION)}\b", pins, re.MULTILINE)


def test_label_studio_lets_our_address_through_and_imports_fast():
    env = environment("label-studio")
    assert env["ML_BLOCK_LOCAL_IP"] == "false"
    assert env["SSRF_PROTECTION_ENABLED"] == "false"
    assert env["fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"] == "true"
    assert env["SENTRY_DSN"] == env["FRONTEND_SENTRY_DSN"] == ""


def test_the_first_user_of_label_studio_has_the_token_that_the_backend_uses():
    assert environment("label-studio")["LABEL_STUDIO_USER_TOKEN"] == environment("backend")["LABEL_STUDIO_API_KEY"]
    assert environment("label-studio")["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"


def test_label_studio_and_backend_see_the_same_images_under_the_same_root():
    root = environment("label-studio")["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"]
    assert environment("backend")["LOCAL_FILES_DOCUMENT_ROOT"] == root
    for service in ("label-studio", *OURS):
        assert f"{root}/images:ro" in [mount.partition("}:")[2] for mount in SERVICES[service]["volumes"]]


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_our_services_is_a_setting(service):
    known = {name for row in settings_table() for name in row["names"].split(", ")}
    assert set(SERVICES[service]["environment"]) <= known


def test_every_setting_reaches_our_services():
    first_names = {row["names"].split(", ")[0] for row in settings_table()}
    assert set(SERVICES["backend"]["environment"]) == first_names


@pytest.mark.parametrize("service", OURS)
def test_without_anything_set_the_environment_gives_valid_settings_with_defaults(service):
    settings = Settings.from_env(environment(service))
    assert settings.url_for_label_studio == "http://backend.internal:9090"
    assert settings.label_studio_url == "http://label-studio:8080"
    unchanged = Settings.model_fields.keys() - {
        "label_studio_api_key",
        "public_url",
        "label_studio_url",
        "redis_url",
        "model_dir",
        "local_files_document_root",
    }
    assert {name: getattr(settings, name) for name in unchanged} == {
        name: getattr(Settings(), name) for name in unchanged
    }


def test_a_setting_in_the_env_file_reaches_the_settings():
    settings = Settings.from_env(environment("worker-fast", {**SECRETS, "ASKFIRST_STRATEGY": "margin"}))
    assert settings.strategy == "margin"


def test_the_backend_answers_to_a_name_that_label_studio_takes_for_webhooks():
    # Label Studio checks the URL of a webhook with Django's validator: a host name without a dot is refused.
    host = Settings.from_env(environment("backend")).public_url.removeprefix("http://").partition(":")[0]
    assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", host)
    assert host in SERVICES["backend"]["networks"]["labelling"]["aliases"]


def test_compose_refuses_to_start_without_the_secrets():
    for name in SECRETS:
        with pytest.raises(KeyError, match=name):
            resolve(TEXT, {k: v for k, v in SECRETS.items() if k != name})


def test_every_variable_of_the_file_is_explained_in_the_example_environment():
    names = set(re.findall(r"\$\{([A-Z_]+)", re.sub(r"^#.*$", "", TEXT, flags=re.MULTILINE)))
    explained = set(re.findall(r"^#?([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE))
    assert names <= explained
    assert explained <= names, "explained, but nothing reads them"


def test_defaults_of_the_example_environment_are_those_of_the_file():
    settings = {row["names"].split(", ")[0] for row in settings_table()}
    told = dict(re.findall(r"^#([A-Z_]+)=(.+)$", ENV_EXAMPLE, re.MULTILINE))
    for name, default in told.items():
        if name not in settings or not name.startswith(PREFIX):
            for match in VARIABLE.finditer(TEXT):
                if match["name"] == name and match["rest"]:
                    assert resolve(match["rest"], {}) == default, name


def test_commands_exist():
    names = set(typer.main.get_command(cli.app).commands)
    for service in OURS:
        command = SERVICES[service]["command"]
        if command[0] == "askfirst":
            assert command[1] in names
            assert len(command) == 2
        else:
            assert command[:3] == ["python", "-m", "backend.worker"]
            assert command[3] in ROLES
    served = {SERVICES[s]["command"][3] for s in OURS if SERVICES[s]["command"][0] == "python"}
    assert served == set(ROLES), "each role has a service"


def test_health_checks_ask_for_what_the_service_is():
    asked = {service: SERVICES[service]["healthcheck"]["test"] for service in OURS}
    roles = {"backend": "web", "worker-fast": "fast", "worker-slow": "slow", "worker-train": "train", "tick": "tick"}
    assert asked == {service: ["CMD", "python", "healthcheck.py", role] for service, role in roles.items()}
    assert set(roles.values()) == set(healthcheck.CHECKS)


def test_the_route_of_the_health_check_exists():
    client = create_app(Settings(), FakeService()).test_client()
    assert client.get(healthcheck.HEALTH_ROUTE).status_code == 200


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_restarts_is_watched_and_has_a_limit(service):
    found = SERVICES[service]
    assert found["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= found["healthcheck"].keys()
    assert {"memory", "pids"} <= found["deploy"]["resources"]["limits"].keys()
    assert "no-new-privileges:true" in found["security_opt"]
    assert "privileged" not in found


@pytest.mark.parametrize("service", OURS)
def test_our_services_write_to_their_volume_and_to_tmp_only(service):
    found = SERVICES[service]
    assert found["read_only"] is True
    assert found["tmpfs"] == ["/tmp"]
    assert found["cap_drop"] == ["ALL"]
    writable = [mount for mount in found["volumes"] if not mount.endswith(":ro")]
    assert writable == ["models:/data"]


def test_ports_are_published_on_this_machine_only_unless_asked():
    for found in SERVICES.values():
        for port in found.get("ports", []):
            assert resolve(port["host_ip"], {}) == "127.0.0.1"
    assert "ports" not in SERVICES["redis"]


def test_redis_is_reached_by_our_services_alone():
    assert COMPOSE["networks"]["queue"]["internal"] is True
    on_queue = {name for name, found in SERVICES.items() if "queue" in found["networks"]}
    assert on_queue == {"redis", *OURS}
    assert SERVICES["redis"]["networks"] == ["queue"]


def test_networks_and_volumes_that_are_used_are_declared():
    networks = {name for found in SERVICES.values() for name in found["networks"]}
    volumes = {mount.split(":")[0] for found in SERVICES.values() for mount in found["volumes"] if mount[0] not in "$."}
    assert networks == set(COMPOSE["networks"])
    assert volumes == set(COMPOSE["volumes"])


# ---------------------------------------------------------------------- image
def test_the_image_runs_as_somebody_without_rights():
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.count("FROM python:3.11-slim") == 2


def test_what_the_image_copies_exists_and_reaches_the_builder():
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*", "everything is kept out unless named"

    def is_sent(path):
        sent = True
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
                sent = rule.startswith("!")
        return sent

    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), f"{source} is not there"
            assert is_sent(source), f"{source} is kept out by .dockerignore"
    assert not is_sent(".env")
    assert not is_sent("deploy/env.example")


def test_the_image_copies_every_package_that_the_project_installs():
    packages = re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    for name in re.findall(r'"(\w+)"', packages[1]):
        assert f"COPY {name} {name}\n" in DOCKERFILE


def test_torch_is_pinned_the_way_the_image_looks_for_it():
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert len(re.findall(r"^(?:torch|torchvision)==[0-9.]+\s*$", pins, re.MULTILINE)) == 2


# ---------------------------------------------------------------------- .env
@pytest.fixture
def copy(tmp_path):
    (tmp_path / "deploy").mkdir()
    for name in ("new-env.sh", "env.example"):
        shutil.copy(ROOT / "deploy" / name, tmp_path / "deploy" / name)
    return tmp_path


def new_env(folder):
    return subprocess.run(["sh", "deploy/new-env.sh"], cwd=folder, capture_output=True, text=True, check=False)


def test_new_env_fills_in_every_secret_and_keeps_it_from_others(copy):
    assert new_env(copy).returncode == 0
    env = dict(re.findall(r"^([A-Z_]+)=(.*)$", (copy / ".env").read_text(encoding="utf-8"), re.MULTILINE))
    assert re.fullmatch("[0-9a-f]{40}", env["LABEL_STUDIO_API_KEY"])
    assert len(env["LABEL_STUDIO_PASSWORD"]) >= 16
    assert len(env["ASKFIRST_WEBHOOK_SECRET"]) == 40
    assert os.stat(copy / ".env").st_mode & 0o077 == 0
    assert resolve(TEXT, env)


def test_new_env_leaves_an_existing_file_alone(copy):
    (copy / ".env").write_text("mine\n", encoding="utf-8")
    assert new_env(copy).returncode == 1
    assert (copy / ".env").read_text(encoding="utf-8") == "mine\n"


def test_two_runs_give_two_sets_of_secrets(copy):
    first, second = [(new_env(copy), (copy / ".env").read_text(), (copy / ".env").unlink())[1] for _ in range(2)]
    assert first != second
