"""helpers/settings.py: each choice, and what a wrong one is told."""

import os
import subprocess
import sys

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


def test_exports_can_be_moved_and_what_cannot_be_written_says_how(monkeypatch, tmp_path):
    """A hub's shared copy of the course may only be read."""
    code = "from helpers import settings; print(settings.exports_folder('01'), settings.EXPORTS)"
    command, own = [sys.executable, "-c", code], os.environ | {"COURSE_EXPORTS": str(tmp_path / "mine")}
    done = subprocess.run(command, cwd=settings.ROOT, env=own, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'mine' / '01'} {tmp_path / 'mine'}\n" and (tmp_path / "mine" / "01").is_dir()
    (tmp_path / "a file").touch()
    monkeypatch.setattr(settings, "EXPORTS", tmp_path / "a file")
    with pytest.raises(PermissionError, match=r"(?s)Nothing can be written to .*a file.*Set .* COURSE_EXPORTS to"):
        settings.exports_folder("01")


def test_quick_runs_leave_no_results_among_those_kept(monkeypatch, tmp_path):
    assert settings.results_folder() == settings.DATA / "results"
    monkeypatch.setenv("COURSE_EFFORT", "quick")
    assert settings.EXPORTS in settings.results_folder().parents, "quick rows belong where git does not look"
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path))
    assert settings.results_folder() == tmp_path, "the reader's choice comes first"
