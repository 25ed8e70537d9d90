"""The demo's side of Label Studio: labelling interface, addresses of images, and the calls, against a recorded style of
answers."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import httpx
import pytest

from askfirst import label_studio as ls
from askfirst.errors import DataProblem, EnvironmentMissing, LabelStudioProblem
from askfirst.home import Home, Memory
from askfirst.sources import Dataset


def choices(config: str) -> list[tuple[str, str | None]]:
    return [(c.attrib["value"], c.attrib.get("hotkey")) for c in ET.fromstring(config).iter("Choice")]


# ---------------------------------------------------------------------- labelling interface
def test_digits_have_themselves_as_keys():
    assert choices(ls.label_config("digit", [str(i) for i in range(10)])) == [(str(i), str(i)) for i in range(10)]


def test_other_classes_get_the_keys_of_a_keyboard_in_their_order():
    assert choices(ls.label_config("kind", ["cat", "dog"])) == [("cat", "1"), ("dog", "2")]


def test_more_classes_than_keys_get_none_rather_than_the_same_key_twice():
    found = choices(ls.label_config("kind", [f"c{i}" for i in range(200)]))
    assert {key for _, key in found} == {None}
    keys = [key for _, key in choices(ls.label_config("kind", [f"c{i}" for i in range(len(ls.HOTKEYS))]))]
    assert len(set(keys)) == len(ls.HOTKEYS)


def test_any_text_survives_the_labelling_interface():
    names = ['a "b" & <c>', "ünï", "it's"]
    config = ls.label_config('x "y" <z>', names)
    assert [value for value, _ in choices(config)] == names
    assert ET.fromstring(config).find("Choices").attrib["name"] == 'x "y" <z>'


def test_the_backend_serves_the_labelling_interface_that_the_demo_writes():
    from backend.labeling_config import parse

    assert parse(ls.label_config("digit", ["0", "1"])).classes == ("0", "1")


# ---------------------------------------------------------------------- addresses
@pytest.mark.parametrize("file", ["a.png", "cat/1 2.png", "ä&b=c?#%.png", "x+y.png"])
def test_the_file_of_an_image_address_is_found_again(file):
    url = ls.image_url("link-1", file)
    assert ls.file_of(url, "link-1") == file
    assert ls.file_of(f"http://localhost:8080{url}", "link-1") == file


@pytest.mark.parametrize(
    "url",
    [
        None,
        3,
        "",
        "/data/upload/1/a.png",
        "/data/local-files/?d=other/a.png",
        "/data/local-files/",
        "https://example.com/a.png",
    ],
)
def test_other_addresses_have_no_file(url):
    assert ls.file_of(url, "link") is None


# ---------------------------------------------------------------------- the running project
PROJECT = {
    "id": 4,
    "parsed_label_config": {
        "kind": {"type": "Choices", "to_name": ["pic"], "labels": ["cat", "dog"]},
        "text": {"type": "TextArea"},
    },
}


def dataset(control: str = "kind", classes: tuple[str, ...] = ("cat",)) -> Dataset:
    return Dataset(Path("/i"), ("a.png",), control, classes, {"a.png": classes[0]} if classes else {})


def test_the_control_of_the_project_tells_names_and_labels():
    assert ls.choices_of(PROJECT, dataset()) == ("kind", "pic", ("cat", "dog"))


def test_without_truth_whatever_choices_the_project_has_will_do():
    assert ls.choices_of(PROJECT, dataset("label", ()))[0] == "kind"


def test_labels_that_the_project_does_not_offer_are_named_with_what_to_add():
    with pytest.raises(DataProblem, match=r'1 labels.*: bee\. Add <Choice value="bee"/>'):
        ls.choices_of(PROJECT, dataset(classes=("bee", "cat")))


def test_a_truth_about_another_control_is_told():
    with pytest.raises(DataProblem, match="asks for kind, the truth is about 'size'"):
        ls.choices_of(PROJECT, dataset("size"))


def test_a_project_without_choices_is_told():
    with pytest.raises(DataProblem, match="no Choices"):
        ls.choices_of({"id": 4, "parsed_label_config": {}}, dataset())


# ---------------------------------------------------------------------- calls
class Server:
    """Answers by (method, path); records what came."""

    def __init__(self, answers: dict[tuple[str, str], httpx.Response | list[httpx.Response]]) -> None:
        self.answers = answers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[request.method, request.url.path]
        return answer.pop(0) if isinstance(answer, list) else answer


def session(server: Server) -> ls.BrowserSession:
    return ls.BrowserSession("http://127.0.0.1:1", transport=httpx.MockTransport(server))


def test_login_sends_the_token_of_the_form_and_later_calls_carry_it():
    server = Server(
        {
            ("GET", "/user/login/"): httpx.Response(200, headers={"set-cookie": "csrftoken=one; Path=/"}),
            ("POST", "/user/login/"): httpx.Response(302, headers={"set-cookie": "csrftoken=two; Path=/"}),
            ("POST", "/api/token/"): httpx.Response(201, json={"token": "secret"}),
        }
    )
    browser = session(server)
    browser.login("a@example.com", "pw")
    assert "csrfmiddlewaretoken=one" in server.requests[1].content.decode()
    assert ls.make_token(browser) == "secret"
    assert server.requests[2].headers["x-csrftoken"] == "two"
    assert server.requests[2].headers["referer"].startswith("http://127.0.0.1:1")


def test_a_wrong_password_is_the_form_shown_again():
    server = Server({("GET", "/user/login/"): httpx.Response(200), ("POST", "/user/login/"): httpx.Response(200)})
    with pytest.raises(LabelStudioProblem) as caught:
        session(server).login("a@example.com", "wrong")
    assert caught.value.status == 200
    assert "wrong" not in str(caught.value)


def test_a_token_that_cannot_be_shown_again_is_explained():
    server = Server({("POST", "/api/token/"): httpx.Response(409, json={"detail": "exists"})})
    with pytest.raises(LabelStudioProblem, match="Revoke it"):
        ls.make_token(session(server))


def test_no_answer_is_a_problem_without_status():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    browser = ls.BrowserSession("http://127.0.0.1:1", transport=httpx.MockTransport(refuse))
    with pytest.raises(LabelStudioProblem, match="ConnectError") as caught:
        browser.call("try", "GET", "/api/x")
    assert caught.value.status is None


def test_a_project_that_was_deleted_is_none():
    server = Server({("GET", "/api/projects/3/"): httpx.Response(404)})
    assert ls.find_project(session(server), 3) is None
    assert ls.find_project(session(server), None) is None


def test_only_images_without_a_task_are_imported_and_in_chunks(monkeypatch):
    monkeypatch.setattr(ls, "IMPORT_CHUNK", 2)
    server = Server(
        {
            ("POST", "/api/projects/3/import"): [
                httpx.Response(201, json={"task_count": 2}),
                httpx.Response(201, json={"task_count": 1}),
            ]
        }
    )
    seen = []
    made = ls.import_tasks(
        session(server),
        3,
        "l",
        ["a.png", "b.png", "c.png", "d.png"],
        ["b.png"],
        lambda done, total: seen.append((done, total)),
    )
    sent = [json.loads(r.content) for r in server.requests]
    assert [[ls.file_of(t["data"]["image"], "l") for t in chunk] for chunk in sent] == [["a.png", "c.png"], ["d.png"]]
    assert made == 3
    assert seen == [(0, 3), (2, 3), (3, 3)]


def test_tasks_that_label_studio_dropped_are_noticed():
    server = Server({("POST", "/api/projects/3/import"): httpx.Response(201, json={"task_count": 1})})
    with pytest.raises(LabelStudioProblem, match="1 of 2"):
        ls.import_tasks(session(server), 3, "l", ["a.png", "b.png"], [])


def test_a_folder_is_allowed_once():
    server = Server(
        {
            ("GET", "/api/storages/localfiles"): [
                httpx.Response(200, json=[]),
                httpx.Response(200, json=[{"path": "/d/files/l"}]),
            ],
            ("POST", "/api/storages/localfiles"): httpx.Response(201, json={"id": 1}),
        }
    )
    browser = session(server)
    ls.allow_folder(browser, 3, Path("/d/files/l"))
    ls.allow_folder(browser, 3, Path("/d/files/l"))
    assert [r.method for r in server.requests] == ["GET", "POST", "GET"]
    assert json.loads(server.requests[1].content)["path"] == "/d/files/l"


# ---------------------------------------------------------------------- starting
def test_label_studio_runs_under_settings_of_ours_alone(tmp_path):
    inherited = {
        "PATH": "/bin",
        "LABEL_STUDIO_HOST": "http://else",
        "HOST": "x",
        "PORT": "1",
        "POSTGRE_NAME": "y",
        "DJANGO_DB": "default",
        "ASKFIRST_SEED": "3",
        "PYTHONPATH": "/ours",
        "LC_ALL": "C.UTF-8",
    }
    env = ls.server_environment(Home(tmp_path), inherited)
    assert {k for k in inherited if env.get(k) == inherited[k]} == {"PATH", "LC_ALL"}
    assert env["ML_BLOCK_LOCAL_IP"] == env["SSRF_PROTECTION_ENABLED"] == "false"
    assert env["fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"] == "true"
    assert env["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] == str(tmp_path / "files")


def test_label_studio_listens_on_this_machine_only_and_its_password_is_no_argument(tmp_path):
    command = ls.server_command(Home(tmp_path), Memory("u@example.com", "the-password", "b"), 18299, Path("/x/ls"))
    assert command.argv[command.argv.index("--internal-host") + 1] == "127.0.0.1"
    assert command.argv[command.argv.index("--port") + 1] == "18299"
    assert "the-password" not in " ".join(command.argv)


def test_label_studio_that_moved_to_another_port_is_noticed(tmp_path):
    (tmp_path / "log").write_text("*** WARNING! ***\n* Port 8080 is in use.\n* Trying to start at 8081\n")
    with pytest.raises(LabelStudioProblem, match="--port"):
        ls.is_up("http://127.0.0.1:1", tmp_path / "log")


def test_a_missing_environment_tells_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentMissing, match="make env"):
        ls.find_executable(tmp_path)


def test_a_new_data_folder_starts_from_the_empty_data_base_of_make_env_and_an_old_one_is_left_alone(tmp_path):
    template = tmp_path / "venv" / ls.FRESH_DATABASE
    template.parent.mkdir(parents=True)
    template.write_bytes(b"empty")
    home, executable = Home(tmp_path / "demo"), tmp_path / "venv" / "bin" / "label-studio"
    home.prepare()
    ls.prepare_database(home, executable)
    database = home.label_studio / "label_studio.sqlite3"
    assert database.read_bytes() == b"empty"
    database.write_bytes(b"labels of a user")
    ls.prepare_database(home, executable)
    assert database.read_bytes() == b"labels of a user"
