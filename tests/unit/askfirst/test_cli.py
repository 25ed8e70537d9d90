"""The command line: what it accepts, and what it says when something is wrong."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from askfirst import cli, demo
from askfirst.errors import DataProblem

COMMANDS = (
    "demo",
    "serve",
    "worker",
    "connect",
    "doctor",
    "status",
    "versions",
    "picks",
    "promote",
    "tune",
    "rollback",
    "settings",
    "strategies",
    "simulate",
)
run = CliRunner().invoke


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("ASKFIRST_SEED", "ASKFIRST_STRATEGY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = run(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.split()) > 10


def test_the_options_of_the_demo_reach_it(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(demo, "run", lambda options: seen.append(options) or 0)
    result = run(
        cli.app,
        [
            "demo",
            "--images",
            str(tmp_path),
            "--labels",
            "t.csv",
            "--bots",
            "3",
            "--labels-per-bot",
            "7",
            "--port",
            "1234",
            "--backend-port",
            "1235",
            "--data-dir",
            "d",
            "--json",
            "o.json",
            "--exit",
            "--seed",
            "5",
            "--strategy",
            "margin",
        ],
    )
    assert result.exit_code == 0, result.output
    assert seen == [
        demo.Options(
            images=tmp_path,
            labels=Path("t.csv"),
            bots=3,
            labels_per_bot=7,
            port=1234,
            backend_port=1235,
            data_dir=Path("d"),
            json=Path("o.json"),
            exit=True,
            seed=5,
            strategy="margin",
        )
    ]


def test_the_exit_status_of_the_demo_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda options: 1)
    assert run(cli.app, ["demo"]).exit_code == 1


def test_an_unknown_strategy_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda options: 0)
    result = run(cli.app, ["demo", "--strategy", "uherdnig"])
    assert result.exit_code == 1
    assert "uherding" in result.output


def test_a_misspelt_setting_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda options: 0)
    monkeypatch.setenv("ASKFIRST_STRATGY", "margin")
    result = run(cli.app, ["demo"])
    assert result.exit_code == 1
    assert "ASKFIRST_STRATGY" in result.output


def test_errors_that_a_user_can_mend_are_a_message_not_a_traceback(monkeypatch):
    def broken(options):
        raise DataProblem("put the images there")

    monkeypatch.setattr(demo, "run", broken)
    monkeypatch.setattr(sys, "argv", ["askfirst", "demo"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert str(caught.value) == "askfirst: put the images there"


def test_a_missing_folder_ends_the_real_command_without_leaving_anything(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "askfirst",
            "demo",
            "--images",
            str(tmp_path / "no"),
            "--data-dir",
            str(tmp_path / "demo"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(cli.__file__).parents[1],
    )
    assert result.returncode == 1
    assert result.stderr.startswith("askfirst: There is no folder")
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_load_the_numerics():
    code = "import sys, askfirst.cli; sys.exit('torch' in sys.modules or 'backend' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(cli.__file__).parents[1]).returncode == 0


def test_fast_only_and_slow_only_exclude_each_other():
    result = run(cli.app, ["worker", "--fast-only", "--slow-only"])
    assert result.exit_code == 1
    assert "exclude" in result.output


def test_a_simulation_that_is_stopped_says_how_to_go_on_and_ends_with_130(monkeypatch, capsys):
    from askfirst import simulate_command

    monkeypatch.setattr(simulate_command, "run", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(sys, "argv", ["askfirst", "simulate", "--out", "runs.csv"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "runs.csv" in (said := capsys.readouterr().err) and "the same command goes on" in said


def test_settings_lists_every_setting_with_its_unit():
    from backend.settings import settings_table

    result = run(cli.app, ["settings"])
    assert result.exit_code == 0
    for row in settings_table():
        assert row["names"] in result.output
        assert row["unit"] in result.output


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_nothing_starts_with_a_strategy_that_does_not_exist(command, monkeypatch):
    monkeypatch.setenv("ASKFIRST_STRATEGY", "uherdin")
    result = run(cli.app, [command])
    assert result.exit_code == 1
    assert "uherdin" in result.output and "uherding" in result.output


def test_strategies_lists_every_strategy():
    from training import api

    result = run(cli.app, ["strategies"])
    assert all(strategy.name in result.output for strategy in api.list_strategies())


# ---------------------------------------------------------------------- commands about one project
@dataclass
class FakeVersion:
    id: str
    created_at: float
    labels_used: int
    metrics: dict[str, float | None]
    others: tuple[object, ...] = ()
    heads: tuple[object, ...] = ()


class FakeModel:
    def __init__(self) -> None:
        self.all = [FakeVersion("g1-a", 1.0, 10, {"accuracy": None}), FakeVersion("g2-b", 2.0, 20, {"accuracy": 0.875})]
        self.now = self.all[1]
        self.weights = True

    def versions(self):
        return self.all

    def live(self):
        return self.now

    def verdict(self, version):
        from training.gate import Verdict

        return {"g1-a": Verdict(False, "g0-x", "worse than g0-x", None)}.get(version)

    def can_fine_tune(self):
        return self.weights

    def promote(self, version):
        from training.errors import VersionMissing

        found = [v for v in self.all if v.id == version]
        if not found:
            raise VersionMissing(version)
        self.now = found[0]

    def roll_back(self):
        self.now = self.all[0]
        return self.now


@pytest.fixture
def project(monkeypatch, tmp_path):
    """One project behind fake tools; `log` keeps what commands changed."""
    from backend import worker_context

    log: list[object] = []
    running: list[str] = []
    desk = SimpleNamespace(
        id=3,
        model=FakeModel(),
        home=tmp_path,
        files=SimpleNamespace(write_pin=lambda pin: log.append(pin), pin=lambda: None),
    )
    workshop = SimpleNamespace(
        desk=lambda number: desk,
        ls=SimpleNamespace(close=lambda: None),
        settings=SimpleNamespace(audit_share=0.3),
        state=SimpleNamespace(
            record=lambda number, **what: SimpleNamespace(wake=4),
            drop=lambda number, name: None,
            put=lambda number, name, value: log.append((name, value)),
            holder=lambda number, kind: "somebody" if running else None,
            flags=lambda number: {},
        ),
    )
    dispatcher = SimpleNamespace(wake=lambda *what: log.append(what))
    monkeypatch.setattr(worker_context, "build", lambda settings: (workshop, dispatcher))
    return SimpleNamespace(model=desk.model, log=log, home=tmp_path, running=running)


def test_status_shows_what_is_known_of_the_uncertainty(project, monkeypatch):
    from backend import service
    from backend.ports import Overview, ProjectOverview

    quality = (("calibration", "typically 3 % off"), ("errors", "84 % of pairs"))
    shown = ProjectOverview(3, "Skin", "in step", "g2-b", None, 20, 100, 80, "87 %", "r", "margin", quality=quality)
    fake = SimpleNamespace(overview=lambda: Overview("http://ls", projects=(shown,)), ready=dict)
    monkeypatch.setattr(service, "BackendService", lambda workshop, dispatcher: fake)
    result = run(cli.app, ["status"])
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines.index("calibration typically 3 % off") == lines.index("accuracy 87 %") + 1
    assert "errors 84 % of pairs" in lines


def test_versions_are_listed_newest_first_with_the_live_one_marked(project):
    lines = run(cli.app, ["versions", "--project", "3"]).output.splitlines()
    assert lines[0].startswith("* g2-b")
    assert "0.875" in lines[0]
    assert lines[1].startswith("  g1-a")
    assert "unknown" in lines[1] and lines[1].endswith("kept back: worse than g0-x")


def test_of_a_version_with_several_questions_each_is_listed(project):
    about = {"audit_n": 10.0, "accuracy": 0.9, "accuracy_low": 0.6, "accuracy_high": 1.0}
    heads = tuple(
        SimpleNamespace(spec=SimpleNamespace(name=name, kind="single"), metrics=metrics, labels_used=labels)
        for name, metrics, labels in (("subject", about, 60), ("expression", {}, 7))
    )
    project.model.all[1] = FakeVersion("g2-b", 2.0, 60, about, heads[1:], heads)
    lines = run(cli.app, ["versions", "--project", "3"]).output.splitlines()
    assert "2 questions" in lines[0] and "accuracy" not in lines[0]
    assert lines[1].startswith("    - subject: 90.0%") and lines[1].endswith("60 labels learnt from")
    assert lines[2].startswith("    - expression:") and lines[2].endswith("7 labels learnt from")


def test_fine_tuning_is_asked_for_and_stopped_by_command(project):
    project.model.now.metrics["audit_n"] = 20.0
    asked = run(cli.app, ["tune", "--project", "3"])
    assert asked.exit_code == 0 and project.log == [(3, "tune", 4)]
    idle = run(cli.app, ["tune", "--project", "3", "--cancel"])
    assert idle.exit_code == 1 and "not being fine-tuned" in idle.output
    project.running.append("tune")
    assert "what is served does not change" in run(cli.app, ["tune", "--project", "3", "--cancel"]).output
    assert project.log[-1] == ("tune_cancel", True)


def test_what_fine_tuning_lacks_is_said(project):
    few = run(cli.app, ["tune", "--project", "3"])
    assert few.exit_code == 1 and "0 audit labels cannot tell" in " ".join(few.output.split())
    assert "30% of the labels go there" in " ".join(few.output.split())
    project.model.weights = False
    without = run(cli.app, ["tune", "--project", "3"])
    assert without.exit_code == 1 and "ASKFIRST_WEIGHTS" in without.output
    assert project.log == []


def test_picks_are_exported_with_their_chances(project, tmp_path):
    line = {
        "task": 8, "at": 12.5, "order": "askfirst g1 sprint-a", "model": "g1", "place": 2, "reason": "explore",
        "propensity": 0.001, "share": 0.09, "left": 1000, "strategy": "margin", "explore": 0.1,
    }  # fmt: skip
    (project.home / "picks.jsonl").write_text(json.dumps(line) + "\n")
    shown = run(cli.app, ["picks", "--project", "3"])
    assert shown.exit_code == 0, shown.output
    (row,) = csv.DictReader(shown.output.splitlines())
    assert (row["task"], row["reason"], float(row["propensity"]), row["order"]) == (
        "8",
        "explore",
        0.001,
        line["order"],
    )
    assert set(row) == set(line) - {"at"} | {"labelled_at"}
    out = tmp_path / "picks.csv"
    assert "1 picks" in run(cli.app, ["picks", "--project", "3", "--out", str(out)]).output
    assert out.read_text() == shown.output
    refused = run(cli.app, ["picks", "--project", "3", "--out", str(tmp_path / "no" / "picks.csv")])
    assert refused.exit_code == 1 and "choose another --out" in refused.output


def test_a_project_without_picks_gives_a_header(project):
    assert run(cli.app, ["picks", "--project", "3"]).output.splitlines() == [
        "task,labelled_at,place,reason,propensity,share,left,strategy,explore,order,model"
    ]


@pytest.mark.parametrize("arguments", [["promote", "g1-a"], ["rollback"]])
def test_a_chosen_version_goes_live_is_pinned_and_orders_the_queue(project, arguments):
    result = run(cli.app, [*arguments, "--project", "3"])
    assert result.exit_code == 0, result.output
    assert project.model.now.id == "g1-a"
    pin, wake = project.log
    assert (pin["kind"], pin["version"]) == ("model version", "g1-a")
    assert wake == (3, "refresh", 4)


def test_an_unknown_version_is_refused_and_nothing_changes(project):
    result = run(cli.app, ["promote", "g9-x", "--project", "3"])
    assert result.exit_code == 1
    assert "g9-x" in result.output
    assert project.log == []


def test_doctor_ends_with_status_one_when_a_check_fails(monkeypatch):
    from backend import doctor

    checks = [doctor.Check("Redis", True, "answers"), doctor.Check("workers", False, "start `askfirst worker`")]
    monkeypatch.setattr(doctor, "run", lambda settings, project: checks)
    result = run(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "ok    Redis" in result.output
    assert "WRONG workers: start `askfirst worker`" in result.output
    monkeypatch.setattr(doctor, "run", lambda settings, project: checks[:1])
    assert run(cli.app, ["doctor"]).exit_code == 0
