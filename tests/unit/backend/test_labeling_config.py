"""Which labelling configs are served, and how the others are refused."""

from dataclasses import replace

import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.control_options import ControlOptions, parse_extra_params, read_options
from backend.errors import PayloadTooLarge, UnsupportedLabelConfig
from backend.labeling_config import MAX_CONFIG_BYTES, Choice, example_config, parse

SIMPLE = (
    '<View><Image name="img" value="$image"/><Choices name="cls" toName="img" choice="single" showInLine="true">'
    '<Choice value="cat"/><Choice value="dog"/><Choice value="bird"/></Choices></View>'
)


def config(choices='<Choice value="cat"/><Choice value="dog"/>', attributes="", before="", after="", image=""):
    image = image or '<Image name="img" value="$image"/>'
    return f'<View>{before}{image}<Choices name="cls" toName="img" {attributes}>{choices}</Choices>{after}</View>'


SERVED = {
    "plain": SIMPLE,
    "radio": config(attributes='choice="single-radio"'),
    "no choice attribute": config(),
    "alias": config('<Choice value="Common cat" alias="cat"/><Choice value="dog" alias=""/>'),
    "hints and hotkeys": config('<Choice value="cat" hint="meows" hotkey="1"/><Choice value="dog" html="b"/>'),
    "choices inside a view": config('<View><Choice value="cat"/></View><Header value="x"/><Choice value="dog"/>'),
    "another key": config(image='<Image name="img" value="$photo.url"/>'),
    "same choice twice": config('<Choice value="cat"/><Choice value="dog"/><Choice value="cat"/>'),
    "comment and style": "<!-- {} -->" + config(before="<Style>.a{}</Style><!-- x -->"),
    "unicode": config('<Choice value="Кошка &amp; co"/><Choice value="犬"/>'),
    "an image without controls": config(after='<Image name="second" value="$other"/>'),
    "multiple view levels": f"<View><View><View>{config()}</View></View></View>",
}


@pytest.mark.parametrize("xml", SERVED.values(), ids=SERVED)
def test_names_key_and_classes_agree_with_label_studios_own_parser(xml):
    ours, theirs = parse(xml), LabelInterface(xml)
    control = theirs.get_control("cls")
    assert ours.classes == tuple(control.labels)
    assert (ours.control.name, ours.control.to_name) == (control.name, control.to_name[0])
    assert "$" + ours.image_key == theirs.get_object("img").value


def test_a_control_keeps_what_annotators_read_apart_from_what_the_wire_carries():
    parsed = parse(
        config('<Choice value="Common cat" alias="c" predicted_values="tabby, tiger cat"/><Choice value="d"/>')
    )
    assert parsed.control.choices == (Choice("c", "Common cat", ("tabby", "tiger cat")), Choice("d", "d"))


def test_tag_and_attribute_names_may_have_any_case():
    xml = SIMPLE.replace("toName", "toname").replace("<Choice ", "<choice ").replace("Image", "image")
    assert parse(xml).classes == ("cat", "dog", "bird")


def test_choices_inside_choices_are_not_offered_as_label_studio_does_not_show_them():
    parsed = parse(config('<Choice value="cat"><Choice value="kitten"/></Choice><Choice value="dog"/>'))
    assert parsed.classes == ("cat", "dog")
    assert any("inside others" in note for note in parsed.notes)


def test_a_changing_text_with_a_fixed_alias_is_a_fixed_answer():
    assert parse(config('<Choice value="$name" alias="a"/><Choice value="b"/>')).classes == ("a", "b")


UNSERVED = {
    "empty text": ("", "empty"),
    "not xml": ("<View", "not well-formed"),
    "a null byte": ("<View>\0</View>", "not well-formed"),
    "a lone surrogate": ("<View>\ud800</View>", "not well-formed"),
    "entity bomb": (
        '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]>' + config('<Choice value="&y;"/>'),
        "document type",
    ),
    "external entity": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>',
        "document type",
    ),
    "very deep": ("<View>" * 5000 + "</View>" * 5000, "deep"),
    "nothing": ("<View/>", "no <Choices>"),
    "only boxes": (
        '<View><Image name="img" value="$image"/><RectangleLabels name="bb" toName="img"><Label value="car"/>'
        "</RectangleLabels></View>",
        "left to annotators",
    ),
    "text instead of an image": (SIMPLE.replace("Image", "Text"), "not an <Image>"),
    "no toName": (SIMPLE.replace(' toName="img"', ""), "no toName"),
    "dynamic": (config("", 'value="$options"'), "takes its choices from task data"),
    "one dynamic choice": (config('<Choice value="$x"/><Choice value="b"/><Choice value="c"/>'), "alias"),
    "nested answers": (config(attributes='allowNested="true"'), "allowNested"),
    "shown sometimes": (config(attributes='visibleWhen="choice-selected" whenTagName="q"'), "only sometimes"),
    "one choice": (config('<Choice value="cat"/>'), "at least two"),
    "no choice": (config(""), "at least two"),
    "per region": (config(attributes='perRegion="true"'), "regions"),
    "when a region is selected": (config(attributes='visibleWhen="region-selected"'), "regions"),
    "skipped": (config(attributes='model_skip="true"'), "model_skip"),
    "ranker": (
        '<View><Image name="img" value="$image"/><Ranker name="r" toName="img"/></View>',
        "not served",
    ),
    "rating of one star": (
        '<View><Image name="img" value="$image"/><Rating name="r" toName="img" maxRating="1"/></View>',
        "whole number from 2 to 100",
    ),
    "number without room": (
        '<View><Image name="img" value="$image"/><Number name="n" toName="img" min="3" max="3"/></View>',
        "must be less",
    ),
    "number in steps of nothing": (
        '<View><Image name="img" value="$image"/><Number name="n" toName="img" step="0"/></View>',
        "above 0",
    ),
    "number with words": (
        '<View><Image name="img" value="$image"/><Number name="n" toName="img" min="few"/></View>',
        "no number",
    ),
    "taxonomy from elsewhere": (
        '<View><Image name="img" value="$image"/><Taxonomy name="t" toName="img" apiUrl="https://a/b"/></View>',
        "list them as <Choice> tags",
    ),
    "two questions": (
        config(after='<Choices name="b" toName="img"><Choice value="x"/></Choices>'),
        "model_skip",
    ),
    "a question and a ranker": (config(after='<Ranker name="r" toName="img"/>'), "model_skip"),
    "several pages": (config(image='<Image name="img" valueList="$pages"/>'), "list of images"),
    "address with text": (config(image='<Image name="img" value="https://host/$file"/>'), "not one variable"),
    "fixed address": (config(image='<Image name="img" value="https://host/a.png"/>'), "not one variable"),
    "repeater": (f'<View><Repeater on="$images">{config()}</Repeater></View>', "Repeater"),
    "two images at once": (
        SIMPLE.replace('toName="img"', 'toName="img,im2"').replace(
            "<Choices", '<Image name="im2" value="$b"/><Choices'
        ),
        "several tags",
    ),
    "bad option": (
        config(attributes='model_explore="much"'),
        "model_explore='much' is not a share from 0 to 1",
    ),
}


@pytest.mark.parametrize(("xml", "reason"), UNSERVED.values(), ids=UNSERVED)
def test_what_is_not_served_is_refused_with_the_reason_and_with_xml_that_is_served(xml, reason):
    with pytest.raises(UnsupportedLabelConfig) as caught:
        parse(xml)
    assert reason in caught.value.reason
    assert caught.value.example in str(caught.value)
    assert len(parse(caught.value.example).classes) >= 2
    LabelInterface(caught.value.example).validate()


def test_the_example_speaks_the_users_own_words():
    with pytest.raises(UnsupportedLabelConfig) as caught:
        parse(config('<Choice value="Melanoma"/><Choice value="Nevus"/>', 'allowNested="true"'))
    parsed = parse(caught.value.example)
    assert parsed.classes == ("Melanoma", "Nevus")
    assert (parsed.control.name, parsed.image_key) == ("cls", "image")


def test_of_two_questions_the_example_keeps_both_and_skips_the_one_that_is_not_served():
    xml = config(after='<Choices name="b" toName="img" value="$options"/>')
    with pytest.raises(UnsupportedLabelConfig) as caught:
        parse(xml)
    assert len(LabelInterface(caught.value.example).controls) == 2
    assert parse(caught.value.example).control.name == "cls"


def test_a_refused_option_is_removed_in_the_example_and_the_others_stay():
    with pytest.raises(UnsupportedLabelConfig) as caught:
        parse(config(attributes='model_explore="2" model_strategy="margin"'))
    assert parse(caught.value.example).options == ControlOptions(strategy="margin")


def test_a_comment_field_beside_the_question_is_left_to_annotators_with_a_note():
    parsed = parse(config(after='<TextArea name="note" toName="img"/><RectangleLabels name="bb" toName="img"/>'))
    assert parsed.control.name == "cls"
    assert any('"note"' in n for n in parsed.notes)
    assert any('"bb"' in n for n in parsed.notes)


def test_a_skipped_question_leaves_the_other_to_be_served():
    xml = config(
        attributes='model_skip="yes"',
        after='<Choices name="b" toName="img"><Choice value="x"/><Choice value="y"/></Choices>',
    )
    assert parse(xml).control.name == "b"


def test_a_config_larger_than_the_limit_is_not_even_parsed():
    with pytest.raises(PayloadTooLarge):
        parse("é" * (MAX_CONFIG_BYTES // 2 + 1))


def test_a_large_config_is_refused_with_a_short_message():
    rows = "".join(f'<Choice value="class {i}"/>' for i in range(3000))
    with pytest.raises(UnsupportedLabelConfig) as caught:
        parse(config(rows, 'model_explore="x"'))
    assert len(parse(config(rows)).classes) == 3000
    assert len(caught.value.example) < 200_000


def test_the_digest_changes_with_what_is_served_and_only_with_that():
    base = parse(SIMPLE).digest
    same = [
        SIMPLE.replace("><", ">\n  <"),
        SIMPLE.replace('value="cat"', 'value="cat" hint="meow" hotkey="1"'),
    ]
    other = [
        SIMPLE.replace('"dog"', '"wolf"'),
        SIMPLE.replace("$image", "$photo"),
        SIMPLE.replace('"cls"', '"label"'),
        SIMPLE.replace('choice="single"', 'choice="single" model_explore="0.2"'),
        SIMPLE.replace('<Choice value="cat"/><Choice value="dog"/>', '<Choice value="dog"/><Choice value="cat"/>'),
    ]
    assert {parse(xml).digest for xml in same} == {base}
    assert len({base, *(parse(xml).digest for xml in other)}) == 6


def test_options_of_the_control_tag_are_read():
    parsed = parse(
        config(
            attributes='model_strategy="Power-Margin" model_explore="0.25" model_min_labels="5" '
            'model_retrain_every="3" model_prelabel_above="0.8"'
        )
    )
    assert parsed.options == ControlOptions("power_margin", 0.25, 5, 3, 0.8)


def test_a_strategy_may_name_its_posterior():
    assert read_options({"model_strategy": "Power-BALD@dropout"})[0].strategy == "power_bald@dropout"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model_explore", "nan"),
        ("model_explore", "1.01"),
        ("model_explore", ""),
        ("model_min_labels", "0"),
        ("model_min_labels", "2.5"),
        ("model_min_labels", "1" * 30),
        ("model_retrain_every", "-1"),
        ("model_retrain_every", "\u0663"),
        ("model_prelabel_above", "inf"),
        ("model_strategy", "rm -rf /"),
        ("model_strategy", "bald@"),
    ],
)
def test_an_option_outside_its_range_is_refused_by_name(name, text):
    options, problems, _ = read_options({name: text})
    assert options == ControlOptions()
    assert list(problems) == [name]


def test_a_misspelt_option_is_noted_with_the_likely_name_and_options_of_other_backends_are_not():
    parsed = parse(config(attributes='model_stratagy="margin" model_path="x.pt"'))
    assert [n for n in parsed.notes if "model_stratagy" in n and "model_strategy" in n]
    assert not [n for n in parsed.notes if "model_path" in n]


def test_the_conventional_score_threshold_is_a_synonym_that_our_own_name_overrides():
    assert read_options({"model_score_threshold": "0.7"})[0].prelabel_above == 0.7
    both = [("model_score_threshold", "0.7"), ("model_prelabel_above", "0.9")]
    assert read_options(dict(both))[0].prelabel_above == 0.9
    assert read_options(dict(reversed(both)))[0].prelabel_above == 0.9


def test_options_not_given_are_taken_from_the_next_source():
    first, second = ControlOptions(strategy="margin"), ControlOptions("entropy", explore=0.0, min_labels=4)
    assert first.or_else(second) == replace(second, strategy="margin")


@pytest.mark.parametrize("text", [None, "", "  ", "{}"])
def test_no_extra_params_mean_no_options(text):
    assert parse_extra_params(text) == (ControlOptions(), [])


def test_extra_params_are_read_with_and_without_prefix():
    options, complaints = parse_extra_params('{"strategy": "margin", "MODEL_EXPLORE": 0.3, "min_labels": 7}')
    assert options == ControlOptions("margin", 0.3, 7)
    assert complaints == []


@pytest.mark.parametrize("text", ["[1]", "no json", '"x"', "[" * 100_000, "NaN", '{"explore": [1]}', '{"a": 1}'])
def test_extra_params_that_cannot_be_used_are_explained_and_never_raise(text):
    options, complaints = parse_extra_params(text)
    assert options == ControlOptions()
    assert complaints


def test_awkward_names_and_labels_survive_in_the_example():
    labels = ('"quoted"', "<b>", "a & b", "it's")
    assert parse(example_config('i"m', "image", "c<", labels)).classes == labels
