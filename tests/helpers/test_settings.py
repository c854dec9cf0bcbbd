"""helpers/settings.py: each choice, and what a wrong one is told."""

import pytest

from helpers import settings

CHOICES = [
    (settings.effort, "COURSE_EFFORT", ("quick", "standard", "full"), "standard"),
    (settings.label_language, "COURSE_LABELS", ("english", "chinese"), "english"),
    (settings.weights_choice, "COURSE_WEIGHTS", ("auto", "imagenet", "random"), "auto"),
]


@pytest.mark.parametrize(("read", "variable", "allowed", "default"), CHOICES)
def test_choices_are_read_and_wrong_ones_refused_with_what_to_do(monkeypatch, read, variable, allowed, default):
    assert read() == default, f"{variable} is not set and the choice is not {default!r}"
    for value in allowed:
        monkeypatch.setenv(variable, value)
        assert read() == value
        settings.check()
    for wrong in ("", "Quick", " english", "完整"):
        monkeypatch.setenv(variable, wrong)
        for function in (read, settings.check):
            with pytest.raises(ValueError) as caught:
                function()
            for part in (variable, repr(wrong), *allowed):
                assert part in str(caught.value)


@pytest.mark.parametrize("effort", ["quick", "standard", "full", None])
def test_by_effort_follows_the_setting(monkeypatch, effort):
    if effort:
        monkeypatch.setenv("COURSE_EFFORT", effort)
    found = settings.by_effort(quick=10, standard=50, full=200)
    assert found == {"quick": 10, "standard": 50, "full": 200, None: 50}[effort], f"wrong value for effort {effort}"


def test_exports_folder_is_made_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "EXPORTS", tmp_path / "data" / "exports")
    folder = settings.exports_folder("01")
    (folder / "model.onnx").write_bytes(b"onnx")
    assert (settings.exports_folder("01") / "model.onnx").read_bytes() == b"onnx"
    assert folder == tmp_path / "data" / "exports" / "01" and settings.exports_folder("02") != folder


def test_quick_runs_leave_no_results_among_those_kept(monkeypatch, tmp_path):
    assert settings.results_folder() == settings.DATA / "results"
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    assert settings.EXPORTS in settings.results_folder().parents, "quick rows belong where git does not look"
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    assert settings.results_folder() == tmp_path, "the reader's choice comes first"
