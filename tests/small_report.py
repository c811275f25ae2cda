"""The smallest report, for tests of what is made of reports."""

from __future__ import annotations

from typing import Any

from efface.metrics._run import Surroundings
from efface.report.report import Counted, Hashes, Report, Verdict
from efface.runs.spec import Asked, Sampler, SuiteUsed

ASKED = Asked("mini", (), (), "uce", "unknown", 0, "world-standard", "")
SUITE = SuiteUsed("world-standard", "1", "0" * 16, 60, 120, Sampler(20, 4.0, "float32", "DDIM"))


def report(line: str = "l", state: Any = "none", **parts: Any) -> Report:
    """A report of nothing, with these parts."""
    given: dict[str, Any] = {
        "title": "t", "verdict": Verdict(line, state), "flags": (), "asked": ASKED, "tables": (), "sheets": (),
        "garbage": {}, "sweeps": (), "detectable": (), "scores": (),
        "neighbourhood": Surroundings((), (), (), ""), "metrics": (), "not_measured": (), "limits": (), "recipe": {},
        "judges": (), "suite": SUITE, "records": Counted(0, 0), "hashes": Hashes("", "", "", ""), "environment": {},
        "images": "",
    }  # fmt: skip
    return Report(**(given | parts))
