"""Pages that are tables of the code say what the code says."""

import re

import pytest

from backend.settings import settings_table
from docs import generate


@pytest.mark.parametrize("name", generate.PAGES)
def test_page_is_up_to_date(name):
    path = generate.ROOT / name
    assert path.is_file(), f"{name} is missing: run python docs/generate.py"
    assert path.read_text(encoding="utf-8") == generate.render(name), f"{name} is stale: run python docs/generate.py"


def test_check_says_which_page_is_stale_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(generate, "PAGES", {"docs/settings.md": lambda: "# Other\n"})
    monkeypatch.setattr(generate.structlog, "configure", lambda **_: None)
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "stale: docs/settings.md\n"


def test_a_gauge_without_a_meaning_stops_the_generator(monkeypatch):
    monkeypatch.delitem(generate.GAUGES, "askfirst_projects")
    with pytest.raises(KeyError, match="askfirst_projects"):
        generate.metrics_page()


def test_every_gauge_that_has_a_meaning_exists():
    assert set(generate.GAUGES) == {f.name for f in generate._families() if f.type == "gauge"}


def test_a_cell_may_hold_bars_and_line_breaks():
    assert generate.table(("a", "b"), [("x|y", "1\n2")]).splitlines()[2] == "| x\\|y | 1 2 |"


def test_every_variable_of_the_settings_is_explained_for_compose():
    text = (generate.ROOT / "deploy/env.example").read_text(encoding="utf-8")
    named = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    fixed = {"MODEL_DIR", "ASKFIRST_REDIS_URL", "LOCAL_FILES_DOCUMENT_ROOT", "HOST", "PORT"}
    assert {row["names"].split(", ")[0] for row in settings_table()} - fixed <= named


@pytest.mark.parametrize("page", sorted(p.name for p in (generate.ROOT / "docs").glob("*.md")))
def test_links_of_a_page_lead_somewhere(page):
    text = (generate.ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (generate.ROOT / "docs" / target).exists(), f"docs/{page} links to {target}, which is not there"
