"""helpers/settings.py: each choice, and what a wrong one is told."""

import pytest

from helpers import settings

CHOICES = [
    (settings.effort, "COURSE_EFFORT", ("quick", "standard", "full"), "standard"),
    (settings.label_language, "COURSE_LABELS", ("english", "chinese"), "english"),
    (settings.weights_choice, "COURSE_WEIGHTS", ("auto", "imagenet", "stand-in"), "auto"),
]
VALID = [(read, variable, value) for read, variable, allowed, _ in CHOICES for value in allowed]


@pytest.mark.parametrize(("read", "variable", "allowed", "default"), CHOICES)
def test_unset_variable_gives_the_default(read, variable, allowed, default):
    assert read() == default, f"{variable} is not set and the choice is not {default!r}"


@pytest.mark.parametrize(("read", "variable", "value"), VALID)
def test_each_allowed_value_is_taken(monkeypatch, read, variable, value):
    monkeypatch.setenv(variable, value)
    assert read() == value, f"{variable}={value} is not taken"


@pytest.mark.parametrize("wrong", ["", "Quick", " english", "stand_in", "完整"])
@pytest.mark.parametrize(("read", "variable", "allowed", "default"), CHOICES)
def test_wrong_value_is_refused_with_what_to_do(monkeypatch, read, variable, allowed, default, wrong):
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(ValueError) as caught:
        read()
    for part in (variable, repr(wrong), *allowed):
        assert part in str(caught.value), f"the message on {variable}={wrong!r} does not say {part}"


@pytest.mark.parametrize("effort", ["quick", "standard", "full", None])
def test_by_effort_follows_the_setting(monkeypatch, effort):
    if effort:
        monkeypatch.setenv("COURSE_EFFORT", effort)
    found = settings.by_effort(quick=10, standard=50, full=200)
    assert found == {"quick": 10, "standard": 50, "full": 200, None: 50}[effort], f"wrong value for effort {effort}"


def test_by_effort_refuses_a_wrong_setting(monkeypatch):
    monkeypatch.setenv("COURSE_EFFORT", "fast")
    with pytest.raises(ValueError, match="COURSE_EFFORT is 'fast'"):
        settings.by_effort(quick=1, standard=2, full=3)


def test_exports_folder_is_made_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "EXPORTS", tmp_path / "data" / "exports")
    folder = settings.exports_folder("01_export_and_check")
    assert folder == tmp_path / "data" / "exports" / "01_export_and_check"
    (folder / "model.onnx").write_bytes(b"onnx")
    again = settings.exports_folder("01_export_and_check")
    assert (again / "model.onnx").read_bytes() == b"onnx", "asking for the folder again lost what was in it"
    assert settings.exports_folder("02_inspect") != folder, "two notebooks share one folder for exports"


def test_quick_runs_leave_no_results_among_those_kept(monkeypatch, tmp_path):
    assert settings.results_folder() == settings.DATA / "results"
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    assert settings.EXPORTS in settings.results_folder().parents, "quick rows belong where git does not look"
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    assert settings.results_folder() == tmp_path, "the reader's choice comes first"
