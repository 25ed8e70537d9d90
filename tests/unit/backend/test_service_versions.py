"""Which versions GET /versions names, and what it says of projects that are not here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from backend.errors import BadPayload, UnknownProject
from backend.service import BackendService
from backend.settings import Settings


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Two projects with a version each, and a third that has none yet."""
    service = BackendService(SimpleNamespace(settings=Settings.from_env({"MODEL_DIR": str(tmp_path)})), None)
    for key in ("1-100", "2-200", "3-300"):
        (tmp_path / "projects" / key).mkdir(parents=True)
    kept = {"1-100": ["g1-a"], "2-200": ["g5-b"], "3-300": []}
    monkeypatch.setattr(service._predictor, "versions", lambda home: kept[home.name])
    return service


def test_without_a_project_as_label_studio_asks_all_are_named(service):
    assert service.versions(None) == ["g1-a", "g5-b"]


@pytest.mark.parametrize(("project", "found"), [("1.100", ["g1-a"]), ("2", ["g5-b"]), ("3.300", [])])
def test_a_project_gets_its_own_and_none_before_its_first_model(service, project, found):
    assert service.versions(project) == found


def test_of_a_project_that_is_not_here_nothing_is_made_up(service):
    with pytest.raises(UnknownProject, match="askfirst connect --project 9"):
        service.versions("9.1795211221")


@pytest.mark.parametrize("project", ["x", "-1", "0", "1.2.3", "cats"])
def test_what_is_no_project_is_refused_with_what_one_looks_like(service, project):
    with pytest.raises(BadPayload, match=r"such as 7 or"):
        service.versions(project)
