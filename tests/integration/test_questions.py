"""Questions of every kind against a real Label Studio: from its editor's answers to what it stores of ours."""

from __future__ import annotations

import pytest
from label_studio_sdk.label_interface import LabelInterface

pytestmark = pytest.mark.e2e

CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="digit" toName="image" required="true" model_inputs="hint">
{digits}</Choices>
<Choices name="traits" toName="image" choice="multiple"><Choice value="even"/><Choice value="big"/></Choices>
<Taxonomy name="group" toName="image" maxUsages="1"><Choice value="small"><Choice value="tiny"/></Choice>
<Choice value="large"/></Taxonomy>
<Rating name="thirds" toName="image" maxRating="4"/>
<Number name="value" toName="image" min="0" max="9" step="1"/></View>""".format(
    digits="".join(f'<Choice value="{digit}"/>' for digit in range(10))
)


def item(name, kind, value):
    return {"from_name": name, "to_name": "image", "type": kind, "value": {kind: value}}


def answers(digit, *, half=False):
    traits = [name for name, applies in (("even", digit % 2 == 0), ("big", digit > 4)) if applies]
    found = [item("digit", "choices", [str(digit)])]
    if not half:
        found.append(
            item("group", "taxonomy", [["small", "tiny"] if digit < 2 else ["small"] if digit < 5 else ["large"]])
        )
        found.append(item("thirds", "rating", digit // 3 + 1))
        found.append(item("value", "number", digit))
    return [*found, item("traits", "choices", traits)] if traits else found


def test_questions_of_every_kind_are_learnt_ordered_and_shown(stack):
    project_id = stack.make_project(0, label_config=CONFIG)
    stack.add_tasks(project_id, 0)
    names = sorted(stack.truth)[:80]
    rows = [{"data": {"image": stack.uri(n), "hint": "odd" if int(stack.truth[n]) % 2 else "even"}} for n in names]
    stack.call("POST", f"/api/projects/{project_id}/import", rows)
    stack.connect(project_id)
    stack.settle(project_id)
    for place in range(40):
        task = stack.next_task(project_id)
        result = answers(int(stack.label_of(task)), half=place % 8 == 0)
        body = {"result": result, "lead_time": 1.0, "draft_id": 0}
        stack.call("POST", f"/api/tasks/{task['id']}/annotations/", body)
    stack.wait(lambda: (p := stack.served(project_id)) and p.labels == 40 and p, "an order that knows 40 labels")
    live = stack.workshop.desk(project_id).model.live()
    assert [spec.kind for spec in live.specs] == ["single", "multiple", "single", "ordered", "number"]
    assert [h.labels_used + int(h.metrics["audit_n"] or 0) for h in live.heads] == [40, 40, 35, 35, 35]
    assert live.heads[0].schema.columns[:2] == ("hint=even", "hint=odd") or live.heads[0].schema.columns[:2] == (
        "hint=odd",
        "hint=even",
    )
    tasks = [stack.next_task(project_id)]
    asked = {"tasks": tasks, "project": str(project_id), "label_config": CONFIG, "params": {"context": {}}}
    (found,) = stack.backend("POST", "/predict", json=asked).json()["results"]
    assert {r["from_name"] for r in found["result"]} >= {"digit", "group", "thirds", "value"}
    assert LabelInterface(CONFIG).validate_prediction(found, return_errors=True) == []
    page = stack.backend("GET", "/status").text
    assert all(name in page for name in ("traits", "thirds", "most about"))
