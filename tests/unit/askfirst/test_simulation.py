"""`askfirst simulate`: rows, resuming, data from folders and tables, the report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from askfirst import simulation, simulation_report
from askfirst.errors import DataProblem
from askfirst.simulation_data import oracle_of, read_labels
from askfirst.simulation_report import area, budgets, compare, confidence_table, interval, labels_to, write_report


@pytest.fixture(scope="module")
def oracle():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = (3 * np.eye(8)[labels] + rng.normal(size=(200, 8))).astype(np.float32)
    return oracle_of(features, [f"class {c}" for c in labels], None)


SETTINGS = simulation.Settings(strategies=("random", "margin"), batch=10, budget=40, seeds=2)
ABOUT = {"data": "blobs"}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_for_each_seed_strategy_and_round(oracle, tmp_path):
    out = tmp_path / "out.csv"
    progress = list(simulation.run(oracle, SETTINGS, out, about=ABOUT))
    rows = rows_of(out)
    assert [p.done for p in progress] == [1, 2, 3, 4]
    assert {(r["seed"], r["strategy"], r["labels"]) for r in rows} == {
        (s, n, k) for s in "01" for n in ("random", "margin") for k in ("10", "20", "30", "40")
    }
    assert tuple(rows[0]) == simulation.FIELDS
    assert all(0 <= float(r["accuracy"]) <= 1 and float(r["nll"]) > 0 for r in rows)


def test_every_label_bought_has_its_pick_with_the_chance_it_had(oracle, tmp_path):
    out = tmp_path / "out.csv"
    named = replace(oracle, names=np.array([f"image-{i}.png" for i in range(200)]))
    list(simulation.run(named, SETTINGS, out, about=ABOUT))
    picks = rows_of(simulation.picks_path(out))
    assert tuple(picks[0]) == simulation.PICK_FIELDS
    of_pair = [p for p in picks if (p["seed"], p["strategy"]) == ("1", "margin")]
    assert [(p["round"], p["place"]) for p in of_pair] == [(str(r), str(k)) for r in range(1, 5) for k in range(1, 11)]
    assert len({p["example"] for p in of_pair}) == 40 and of_pair[0]["example"].startswith("image-")
    later = [p for p in of_pair if p["round"] != "1"]
    own = [p for p in later if p["reason"] == "uncertain"]
    drawn = [p for p in later if p["reason"] == "explore"]
    assert own and drawn and {p["reason"] for p in of_pair} <= {"uncertain", "explore", "diverse", "audit"}
    assert all(float(p["propensity"]) == 1 for p in own)
    assert all(float(p["propensity"]) == pytest.approx(1 / int(p["left"]), rel=0.02) for p in drawn)


def test_without_names_examples_are_called_by_their_rows(oracle, tmp_path):
    out = tmp_path / "out.csv"
    list(simulation.run(oracle, replace(SETTINGS, seeds=1), out, about=ABOUT))
    assert all(0 <= int(p["example"]) < 200 for p in rows_of(simulation.picks_path(out)))


def test_rows_of_an_older_release_are_kept_and_gone_on_with(oracle, tmp_path):
    out = tmp_path / "old.csv"
    list(simulation.run(oracle, replace(SETTINGS, seeds=1), out, about=ABOUT))
    new = ("e_aurc", "augrc", "auroc", "coverage_at_95", "ece_debiased", "brier", "set_size", "set_coverage")
    old = pd.read_csv(out).drop(columns=list(new))
    old.to_csv(out, index=False)
    simulation.picks_path(out).unlink()
    lines = [json.loads(line) for line in simulation.curves_path(out).read_text().splitlines()]
    for line in lines:
        line.pop("confidences", None)
    simulation.curves_path(out).write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report(out, tmp_path / "report").read_text()
    assert "## aurc at each budget" in text and "## brier" not in text and "Which confidence" not in text
    list(simulation.run(oracle, SETTINGS, out, about=ABOUT))
    rows = rows_of(out)
    assert tuple(rows[0]) == simulation.FIELDS and len(rows) == 16
    assert {r["brier"] == "" for r in rows if r["seed"] == "0"} == {True}
    assert all(float(r["brier"]) > 0 for r in rows if r["seed"] == "1")
    assert {p["seed"] for p in rows_of(simulation.picks_path(out))} == {"1"}
    text = write_report(out, tmp_path / "report").read_text()
    assert "## brier at each budget" in text and "Which confidence ranks errors best" in text


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(oracle, tmp_path):
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    list(simulation.run(oracle, SETTINGS, whole, about=ABOUT))
    started = simulation.run(oracle, SETTINGS, parts, about=ABOUT)
    next(started)
    started.close()
    assert len({(r["seed"], r["strategy"]) for r in rows_of(parts)}) == 1
    resumed = list(simulation.run(oracle, SETTINGS, parts, about=ABOUT))
    assert [p.done for p in resumed] == [2, 3, 4]
    timeless = [{k: v for k, v in r.items() if not k.endswith("_s") and k != "seconds"} for r in rows_of(parts)]
    assert timeless == [{k: v for k, v in r.items() if not k.endswith("_s") and k != "seconds"} for r in rows_of(whole)]
    assert simulation.picks_path(parts).read_text() == simulation.picks_path(whole).read_text()


def test_another_setting_does_not_mix_with_what_is_there(oracle, tmp_path):
    out = tmp_path / "out.csv"
    next(simulation.run(oracle, SETTINGS, out, about=ABOUT))
    with pytest.raises(DataProblem, match="another batch"):
        next(simulation.run(oracle, replace(SETTINGS, batch=5), out, about=ABOUT))


def test_a_file_of_somebody_else_is_left_alone(oracle, tmp_path):
    out = tmp_path / "precious.csv"
    out.write_text("mine\n")
    with pytest.raises(DataProblem, match="not one of ours"):
        next(simulation.run(oracle, SETTINGS, out, about=ABOUT))
    assert out.read_text() == "mine\n"


def test_more_workers_give_the_same_rows(oracle, tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    list(simulation.run(oracle, SETTINGS, one, about=ABOUT))
    list(simulation.run(oracle, replace(SETTINGS, workers=2), two, about=ABOUT))

    def key(row):
        return row["seed"], row["strategy"], int(row["round"])

    for a, b in zip(sorted(rows_of(one), key=key), sorted(rows_of(two), key=key), strict=True):
        assert (a["accuracy"], a["nll"], a["aurc"]) == (b["accuracy"], b["nll"], b["aurc"])


# ---------------------------------------------------------------------- data
@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("L", (4, 4)).save(folder / name)
    return folder


def test_labels_and_groups_come_from_named_columns_of_a_wide_table(pictures, tmp_path):
    table = tmp_path / "meta.csv"
    table.write_text("lesion_id,image_id,dx,age\nL1,a,nv,40\nL1,b,mel,\nL2,zzz,nv,1\n")
    found = read_labels(pictures, table, "dx", "lesion_id")
    assert (found.files, found.labels, found.groups) == (("a.png", "b.png"), ("nv", "mel"), ("L1", "L1"))
    assert any("zzz" in note for note in found.notes) and any("1 images have no label" in n for n in found.notes)


@pytest.mark.parametrize(
    ("label", "group", "text", "message"),
    [
        ("kind", None, "image,label\na,x\n", "no column 'kind'"),
        (None, "patient", "image,label\na,x\n", "no column 'patient'"),
        (None, None, "image\na\n", "one column only"),
        (None, None, "image,label\nq,x\n", "labels no image"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(pictures, tmp_path, label, group, text, message):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(DataProblem, match=message):
        read_labels(pictures, table, label, group)


def test_one_class_is_refused():
    with pytest.raises(DataProblem, match="one class only"):
        oracle_of(np.zeros((2, 3), np.float32), ["x", "x"], None)


# ---------------------------------------------------------------------- the report
def test_the_area_is_the_mean_height_of_the_curve():
    assert area(np.array([10.0, 20.0, 40.0]), np.array([0.0, 1.0, 1.0])) == pytest.approx((5 + 20) / 30)
    assert area(np.array([10.0]), np.array([0.4])) == 0.4


def test_labels_to_a_target_ignore_a_single_peak_and_lie_on_the_line_between_rounds():
    labels, values = np.array([10.0, 20, 30, 40]), np.array([0.5, 0.9, 0.6, 0.8])
    assert labels_to(labels, values, 0.7) == pytest.approx(35)
    assert labels_to(labels, values, 0.5) == 10
    assert labels_to(labels, values, 0.85) == float("inf")


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(size=50)
    found = interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(50), rel=0.15)


def frame(curves):
    return pd.DataFrame(
        [
            {"strategy": s, "seed": seed, "round": i, "labels": 10 * (i + 1), "balanced_accuracy": v, "seconds": 0.1}
            for (s, seed), values in curves.items()
            for i, v in enumerate(values)
        ]
    )


def test_differences_are_paired_by_seed():
    # Seeds differ far more than strategies; paired, the difference is the same in each and its interval a point.
    table, target = compare(
        frame(
            {
                ("random", 0): [0.2, 0.3], ("random", 1): [0.7, 0.8],
                ("margin", 0): [0.3, 0.4], ("margin", 1): [0.8, 0.9],
            }
        ),
        "balanced_accuracy",
    )  # fmt: skip
    best = table.iloc[0]
    assert best["strategy"] == "margin"
    assert (best["to_random"], best["to_random_low"], best["to_random_high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert target == pytest.approx(0.95 * 0.55)


def test_budgets_are_rounds_that_everybody_has_and_double_towards_the_last():
    curves = {("random", s): np.linspace(0, 1, 40) for s in range(2)} | {("margin", 0): np.linspace(0, 1, 20)}
    assert budgets(frame(curves)) == [10, 20, 50, 100, 200]


def test_the_report_names_winners_and_losers_and_draws_three_pictures(oracle, tmp_path):
    out = tmp_path / "blobs.csv"
    list(simulation.run(oracle, SETTINGS, out, about=ABOUT))
    page = write_report(out, tmp_path / "report")
    text = page.read_text()
    assert "| random |" in text and "| margin |" in text and "difference to random order" in text
    for name in ("learning_curves", "calibration", "risk_coverage"):
        picture = (tmp_path / "report" / f"{name}.svg").read_text()
        assert picture.count("<path") > 5 and name in text
    assert json.loads(simulation.settings_path(out).read_text())["data"] == "blobs"


def said(seed, strategy, chosen="msp", compared=True, **aurc):
    found = {"aurc": aurc, "chosen": chosen, "compared": compared}
    return {"seed": seed, "strategy": strategy, "labels": 100, "confidences": found}


def test_the_table_of_confidences_is_the_mean_fall_of_the_area_over_seeds():
    lines = [
        said(0, "random", "margin", msp=0.20, margin=0.19),
        said(0, "margin", msp=0.10, margin=0.11),
        said(1, "random", "margin", msp=0.20, margin=0.16),
        said(1, "margin", "msp", False, msp=0.10, margin=0.10),
        {"seed": 0, "strategy": "random", "labels": 50},
    ]
    title, told, table = confidence_table(lines, [50, 100])
    assert title == "## Which confidence ranks errors best" and "100 labels: 2 of 3" in told
    rows = table.splitlines()
    assert rows[0] == "| confidence | 100 labels |"
    assert rows[2] == "| AURC of msp | 0.150 (0.150 to 0.150) |"
    # Seed by seed the mean over strategies: 0.00 and 0.02; chosen 0.005 and 0.02.
    assert rows[3] == "| margin | +0.0100 (+0.0000 to +0.0200) |"
    assert rows[4] == "| **chosen on the audit slice** | +0.0125 (+0.0050 to +0.0200) |"
    assert confidence_table(lines[4:], [50]) == []


def test_a_report_without_rows_says_what_to_run_first(tmp_path):
    with pytest.raises(DataProblem, match="askfirst simulate"):
        simulation_report.read(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataProblem, match="not a CSV of"):
        simulation_report.read(tmp_path / "other.csv")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file.csv").write_text("")
    for out in (tmp_path / "file.csv" / "x.csv", Path("/proc/x.csv")):
        with pytest.raises(DataProblem, match="Give another --out"):
            simulation.refuse_foreign(out)
