"""Which cases the tests of this folder read: all of a folder, whatever their names, and never none in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from . import conftest as cases


def copied(method: str, case: str, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".json", ".safetensors"):
        shutil.copy(cases.HERE / method / f"{case}{ending}", to.with_name(to.name + ending))
    return to


def first(kind: str) -> str:
    """The name of a bundled case of this kind."""
    return next(n.partition("/")[2] for n, (k, _) in cases.found_in(cases.HERE).items() if k == kind)


@pytest.mark.parametrize("kind", ["kscu/training", "kscu/tables", "scapre/bures", "scapre/functions", "uce", "fia"])
def test_a_case_of_any_name_is_read_as_what_it_is(kind: str, tmp_path: Path) -> None:
    method = kind.partition("/")[0]
    copied(method, first(kind), tmp_path / method / "another name")
    pattern = kind if "/" in kind else f"{kind}/*"
    assert [*cases.chosen(cases.further_in(tmp_path), (pattern,))] == [f"{method}/another name"]


def test_a_further_case_named_like_a_bundled_one_is_not_dropped(tmp_path: Path) -> None:
    name = first("uce")
    file = copied("uce", name, tmp_path / "uce" / name)
    assert cases.further_in(tmp_path) == {}
    file.with_name(f"{name}.safetensors").write_bytes(b"other numbers")
    assert [*cases.further_in(tmp_path)] == [f"uce/{name} (further)"]


def test_a_folder_without_a_case_stops_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setenv("EFFACE_REFERENCE", str(folder))
        with pytest.raises(pytest.UsageError, match="holds no case"):
            cases._further()


def test_no_bundled_case_is_left_unread() -> None:
    """Every case of a method with tests belongs to a kind."""
    kinds = {kind for kind, _ in cases.found_in(cases.HERE).values()}
    known = {f"{method}/{kind}" for method, rows in cases.KINDS.items() for kind, _ in rows}
    assert {k for k in kinds if k.partition("/")[0] in cases.KINDS} <= known
