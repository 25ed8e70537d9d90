"""Promises of every error at the rim."""

import re

import pytest

from backend import errors
from backend.errors import (
    BackendError,
    BadPayload,
    ConfigError,
    FineTuningRefused,
    ImageUnavailable,
    LabelStudioRejected,
    LabelStudioUnavailable,
    PayloadTooLarge,
    ProjectBusy,
    StoreUnavailable,
    Unauthorized,
    UnknownProject,
    UnsupportedLabelConfig,
)

EXAMPLES = {
    ConfigError: ConfigError("must start with http:// or https://", setting="LABEL_STUDIO_URL"),
    BadPayload: BadPayload("must be text, got a number", "tasks[3].data.image"),
    PayloadTooLarge: PayloadTooLarge("a request body", 100, 101),
    Unauthorized: Unauthorized(),
    UnsupportedLabelConfig: UnsupportedLabelConfig("there are no choices.", "<View/>"),
    UnknownProject: UnknownProject(7),
    ImageUnavailable: ImageUnavailable(7, "the upload is gone"),
    LabelStudioUnavailable: LabelStudioUnavailable("list the tasks", "timed out"),
    LabelStudioRejected: LabelStudioRejected("list the tasks", 404, "<html>\n no </html>"),
    StoreUnavailable: StoreUnavailable("connection refused"),
    FineTuningRefused: FineTuningRefused("project 7 is not being fine-tuned"),
    ProjectBusy: ProjectBusy(7, "a refresh is running"),
}
STATUS_AND_RETRY = {
    ConfigError: (500, False),
    BadPayload: (400, False),
    PayloadTooLarge: (413, False),
    Unauthorized: (401, False),
    UnsupportedLabelConfig: (422, False),
    UnknownProject: (404, False),
    ImageUnavailable: (422, False),
    LabelStudioUnavailable: (502, True),
    LabelStudioRejected: (502, False),
    StoreUnavailable: (503, True),
    FineTuningRefused: (409, False),
    ProjectBusy: (409, True),
}


def classes_of_the_module():
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    return [c for c in found if c is not BackendError]


def test_every_error_of_the_module_is_in_the_tree_and_in_these_tests():
    assert set(classes_of_the_module()) == set(EXAMPLES) == set(STATUS_AND_RETRY)
    assert all(issubclass(c, BackendError) for c in classes_of_the_module())


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda c: c.__name__)
def test_status_and_retryable_are_properties_of_the_type(kind):
    error = EXAMPLES[kind]
    assert (error.status, error.retryable) == STATUS_AND_RETRY[kind]


def test_codes_are_stable_words_and_differ():
    codes = [c.code for c in EXAMPLES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda c: c.__name__)
def test_clients_see_one_shape_without_a_traceback(kind):
    error = EXAMPLES[kind]
    assert error.as_body("r1") == {"error": error.code, "message": str(error), "request_id": "r1"}


def test_messages_carry_the_fields_that_say_what_to_do():
    assert "LABEL_STUDIO_URL" in str(EXAMPLES[ConfigError])
    assert str(EXAMPLES[BadPayload]).startswith("tasks[3].data.image: ")
    assert "100" in str(EXAMPLES[PayloadTooLarge])
    assert "101" in str(EXAMPLES[PayloadTooLarge])
    assert "<View/>" in str(EXAMPLES[UnsupportedLabelConfig])
    assert "task 7" in str(EXAMPLES[ImageUnavailable])
    assert "404" in str(EXAMPLES[LabelStudioRejected])


def test_a_setting_named_in_the_message_is_not_named_twice():
    assert str(ConfigError("PORT=0 is not a port", setting="PORT")) == "PORT=0 is not a port"


def test_a_foreign_body_is_cut_to_one_short_line():
    error = LabelStudioRejected("import", 400, "line\n" * 5000)
    assert "\n" not in error.body
    assert len(error.body) == 300
    assert error.label_studio_status == 400


def test_an_image_may_be_worth_another_try_while_others_are_not():
    assert ImageUnavailable(1, "slow", retryable=True).retryable is True
    assert ImageUnavailable(1, "gone").retryable is False
    assert str(ImageUnavailable(None, "gone")) == "gone"
