"""The page of a study."""

from __future__ import annotations

from v2v.evaluation.study.records import Key
from v2v.pages import render


def page(key: Key) -> str:
    """Build the page. It does not reveal the methods of the clips."""
    trials = [{"id": trial.id, "clips": list(trial.clips)} for trial in key.trials]
    plan = {"study": key.study, "question": key.question, "trials": trials}
    return render("v2v.evaluation.study", "study.html", plan=plan)
