"""The page as a text: what is on it, and that nothing on it can do harm."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from backend.ports import Overview, ProjectOverview, QueueEntry
from backend.status_page import (
    REASONS,
    Progress,
    ago,
    bar_width,
    labelled,
    percent,
    progress,
    prose,
    render,
    render_problem,
    safe_url,
)

NOW = 1_800_000_000.0
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"


def project(**changes: object) -> ProjectOverview:
    values: dict[str, object] = {
        "project_id": 7,
        "title": "Skin",
        "state": "Learning from 3 new labels.",
        "version": "7-g4",
        "pushed": "7-g4-s2",
        "labels_used": 1412,
        "tasks": 10_015,
        "unlabelled": 8_600,
        "accuracy": "86 % (78 to 91 %), on 103 audit tasks",
        "representation": "mobilenet_v2 with ImageNet weights",
        "strategy": "uherding",
        "warnings": ("Sampling was changed; run `askfirst connect --project 7`.",),
        "queue": (
            QueueEntry(1001, 0.0123, 0.41, "nevus", "uncertain"),
            QueueEntry(1002, 0.02, 0.0, None, "unread"),
        ),
        "events": ({"at": NOW - 4, "what": "label of task 3"},),
        "jobs": (
            {"id": "a", "what": "Read pictures", "state": "started", "progress": "3/10", "since": NOW - 65},
            {"id": "b", "what": "Refit", "state": "failed", "progress": "", "since": NOW - 7200},
        ),
    }
    return ProjectOverview(**(values | changes))  # type: ignore[arg-type]


def page(*projects: ProjectOverview, **changes: object) -> str:
    values = {"label_studio_url": "http://ls:8080", "workers": ("w1", "w2"), "projects": projects} | changes
    return render(Overview(**values), now=NOW)  # type: ignore[arg-type]


class Elements(HTMLParser):
    """Elements with their attributes, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_everything_of_an_overview_is_on_the_page():
    text = Elements(page(project())).text
    for expected in (
        "Skin",
        "#7",
        "Learning from 3 new labels.",
        "7-g4",
        "7-g4-s2",
        "1,412",
        "8,600 of 10,015",
        "86 % (78 to 91 %), on 103 audit tasks",
        "mobilenet_v2 with ImageNet weights",
        "uherding",
        "Sampling was changed; run askfirst connect --project 7.",
        "nevus 41 %",
        "the model is unsure",
        "score 0.012",
        "no guess yet",
        "picture not read yet",
        "label of task 3",
        "4 s ago",
        "Read pictures",
        "3 of 10",
        "1 min ago",
        "failed",
        "2 h ago",
        "2 workers",
        "1 project",
    ):
        assert expected in text, expected


def test_queue_shows_a_picture_per_task_in_order_and_links_into_label_studio():
    found = Elements(page(project()))
    pictures = [i["src"] for i in found.all("img") if "/thumb/" in (i["src"] or "")]
    assert pictures == ["/thumb/7/1001", "/thumb/7/1002"]
    assert "http://ls:8080/projects/7/data?task=1001" in [a.get("href") for a in found.all("a")]


def test_progress_bar_shows_how_far_a_job_is():
    bars = [bar for bar in Elements(page(project())).all("progress") if bar.get("aria-label") == "progress"]
    assert [(bar["value"], bar["max"]) for bar in bars] == [("3", "10")]


def test_every_reason_of_the_ranking_has_words():
    from training.api import REASONS as ALL

    assert set(REASONS) == set(ALL)


def test_sentences_about_uncertainty_stand_beside_the_strategy():
    found = Elements(page(project(quality=(("calibration", "typically 3 % off"), ("errors", "84 % of pairs")))))
    assert "Calibration" in found.text and "typically 3 % off" in found.text and "84 % of pairs" in found.text


def test_hostile_data_stays_text():
    hostile = project(
        title=EVIL,
        state=EVIL,
        version=EVIL,
        pushed=EVIL + "2",
        accuracy=EVIL,
        representation=EVIL,
        strategy=EVIL,
        warnings=(EVIL, f"`{EVIL}`"),
        queue=(QueueEntry(1, 0.5, 0.5, EVIL, EVIL),),
        events=({"at": EVIL, "what": EVIL},),
        jobs=({"id": EVIL, "what": EVIL, "state": EVIL, "progress": EVIL, "since": EVIL},),
        quality=((EVIL, EVIL),),
    )
    html = page(hostile, warnings=(EVIL,), workers=(EVIL,), label_studio_url="javascript:alert(1)")
    found = Elements(html)
    assert "49" not in found.text.replace("{{7*7}}", "")
    assert [s.get("src") for s in found.all("script")] == ["/static/refresh.js"]
    assert not [attributes for _, attributes in found.found if any(name.startswith("on") for name in attributes)]
    assert not [a for a in found.all("a") if "javascript" in (a.get("href") or "")]
    assert all((i["src"] or "").startswith(("/thumb/", "/static/")) for i in found.all("img"))


def test_page_has_no_inline_style_or_script_since_the_policy_forbids_them():
    html = page(project())
    found = Elements(html)
    assert not [attributes for _, attributes in found.found if "style" in attributes]
    assert "<style" not in html
    assert all(script.get("src") for script in found.all("script"))


def test_each_part_is_marked_once_for_the_live_refresh():
    marks = [a["data-part"] for _, a in Elements(page(project(), project(project_id=8))).found if "data-part" in a]
    assert len(marks) == len(set(marks))
    assert {"7-head", "7-queue", "8-jobs"} <= set(marks)


def test_without_script_the_page_reloads_itself():
    assert '<noscript><meta http-equiv="refresh"' in page()


def test_first_visit_says_how_to_connect_a_project():
    assert "askfirst connect --project ID" in page()


def test_project_that_has_just_begun_is_shown_without_gaps():
    text = Elements(
        page(project(version=None, pushed=None, tasks=0, unlabelled=0, queue=(), events=(), jobs=(), warnings=()))
    ).text
    for expected in ("none yet", "No order yet.", "Nothing to do.", "Nothing yet."):
        assert expected in text


def test_jobs_and_events_with_missing_keys_do_not_break_the_page():
    assert "Nothing" not in Elements(page(project(jobs=({},), events=({},)))).text


def test_addresses_carry_the_prefix_under_which_the_app_is_mounted():
    html = render(Overview("http://ls", projects=(project(),)), now=NOW, base="/askfirst")
    assert '"/askfirst/static/status.css"' in html
    assert '"/askfirst/thumb/7/1001"' in html


def test_problem_page_says_what_to_do_and_escapes_it():
    html = render_problem(f"Redis does not answer: run `redis-server` {EVIL}")
    assert "<code>redis-server</code>" in html
    assert "<script>alert" not in html


@pytest.mark.parametrize(
    ("seconds_ago", "said"),
    [
        (0, "now"),
        (0.9, "now"),
        (1, "1 s ago"),
        (59.9, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (86400, "1 d ago"),
        (-5, "now"),
    ],
)
def test_time_passed_is_said_in_one_unit_rounded_down(seconds_ago, said):
    assert ago(NOW - seconds_ago, NOW) == said


@pytest.mark.parametrize("nothing", [None, "", "x", 0, -1, float("nan"), float("inf")])
def test_no_time_is_no_words(nothing):
    assert ago(nothing, NOW) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3/10", Progress(3, 10)),
        ("11/10", Progress(10, 10)),
        ("0/1", Progress(0, 1)),
        ("", None),
        ("3", None),
        ("3/0", None),
        ("a/b", None),
        ("-1/5", None),
        ("1/" + "9" * 30, None),
        (None, None),
        ("٣/٤", None),
    ],
)
def test_progress_is_read_or_left_out(text, expected):
    assert progress(text) == expected


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0 %"), (1, "100 %"), (0.5, "50 %"), (0.9999, "> 99 %"), (0.0001, "< 1 %"), (float("nan"), "?")],
)
def test_percent_never_claims_certainty_that_is_not_there(share, said):
    assert percent(share) == said


def test_labelled_share_stays_within_its_bar():
    assert labelled(project(tasks=10, unlabelled=4)) == Progress(6, 10)
    assert labelled(project(tasks=10, unlabelled=12)) == Progress(0, 10)
    assert labelled(project(tasks=0)) is None
    assert [bar_width(x) for x in (-1, 0.256, 2, float("nan"))] == [0, 25.6, 100, 0]


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "ftp://x", "//x", "", "http://", "data:text/html,x", "http://[", "x"]
)
def test_only_plain_web_addresses_become_links(url):
    assert safe_url(url) is None


def test_web_address_loses_its_last_slash():
    assert safe_url("https://ls.example/") == "https://ls.example"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("run `x y`", "run <code>x y</code>"),
        ("`a` and `b`", "<code>a</code> and <code>b</code>"),
        ("a ` b", "a ` b"),
        ("`a` ` b", "<code>a</code> ` b"),
        ("<b>`<i>`", "&lt;b&gt;<code>&lt;i&gt;</code>"),
        ("", ""),
    ],
)
def test_commands_in_sentences_are_set_as_code(text, html):
    assert str(prose(text)) == html
