"""The runner of ``findings/`` on scripts of our own, and the table that readers see. No finding is run here."""

import csv

import pytest

from course import findings
from helpers import settings


def test_runner_says_which_hold(tmp_path, capsys, monkeypatch):
    (tmp_path / "a-holds.sh").write_text("echo as seen\n")
    (tmp_path / "b-is-gone.sh").write_text("echo right now; exit 1\n")
    assert findings.hold([], folder=tmp_path) == 1
    said = capsys.readouterr().out
    assert "holds  a-holds: as seen" in said and "GONE OR FAILED  b-is-gone: right now" in said
    assert findings.hold(["holds"], folder=tmp_path) == 0
    (tmp_path / "c-hangs.sh").write_text(f"set -e\ntrap 'touch {tmp_path / 'cleaned'}' EXIT\nsleep 600\n")
    monkeypatch.setattr(findings, "LIMIT_S", 1)
    assert findings.hold(["hangs"], folder=tmp_path) == 1
    assert "GONE OR FAILED  c-hangs: stopped after 1 s" in capsys.readouterr().out and (tmp_path / "cleaned").exists()
    with pytest.raises(ValueError, match="No script"):
        findings.hold(["nothing"], folder=tmp_path)


def test_each_surprise_names_its_evidence_and_each_finding_has_its_row():
    rows = list(csv.DictReader((settings.DATA / "surprises.csv").open(encoding="utf-8")))
    scripts = {path.stem for path in (settings.ROOT / "findings").glob("*.sh")}
    notebooks = {f"notebook {path.name[:2]}" for path in settings.NOTEBOOKS.glob("*.ipynb")}
    assert len(rows) >= 25 and all(all(row.values()) for row in rows)
    assert {row["script"] for row in rows} <= scripts | notebooks
    assert scripts <= {row["script"] for row in rows}, "a finding that no reader hears of"
