"""Requests: the text form, kinds, files, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import BadRequest, EffaceError, UnknownName, WrongFile
from efface.prompts import read_pairs
from efface.request import KINDS, Concept, Request, read_concepts, read_lines


@pytest.mark.parametrize(
    ("text", "name", "kind", "anchor"),
    [
        ("dog", "dog", "", None),
        ("dog=", "dog", "", ""),
        ("dog=a grey wolf", "dog", "", "a grey wolf"),
        ("style:noto", "noto", "style", None),
        ("style:noto=art", "noto", "style", "art"),
        ("  big   dog =  cat ", "big dog", "", "cat"),
        ("dog=cat=bird", "dog", "", "cat=bird"),
        ("the time is 12:30", "the time is 12:30", "", None),
        ("scene:a street: night", "a street: night", "scene", None),
        ("Hund auf Grün", "Hund auf Grün", "", None),
    ],
)
def test_the_text_form_is_kind_name_anchor(text: str, name: str, kind: str, anchor: str | None) -> None:
    found = Concept.parse(text)
    assert (found.name, found.kind, found.anchor) == (name, kind, anchor)


words = st.text(st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8)


@given(kind=st.sampled_from(["", *KINDS]), name=words, anchor=st.none() | st.just("") | words)
def test_parsing_what_was_written_gives_the_concept_back(kind: str, name: str, anchor: str | None) -> None:
    if anchor is not None and anchor.casefold() == name.casefold():
        return
    written = f"{kind}:" * bool(kind) + name + ("" if anchor is None else f"={anchor}")
    found = Concept.parse(written)
    assert (found.kind, found.name, found.anchor) == (kind, name, anchor)


@pytest.mark.parametrize(
    ("name", "listed", "kind", "label"),
    [
        ("dog", {"dog": "object"}, "object", "dog"),
        ("noto", {"noto": "style"}, "style", "noto"),
        ("Noto style", {"noto": "style"}, "style", "Noto"),
        ("cubist style", {}, "style", "cubist"),
        ("dog", {}, "object", "dog"),
        ("a street", {"a street": "scene"}, "scene", "a street"),
    ],
)
def test_without_kind_the_models_list_decides_then_the_name(
    name: str, listed: dict[str, str], kind: str, label: str
) -> None:
    found = Request.build([name]).settle(listed).concepts[0]
    assert (found.kind, found.label) == (kind, label)


def test_one_text_stands_for_a_tuple_of_one_and_blanks_do_not_count() -> None:
    concept = Concept(" cat ", synonyms="kitten", keep=" big  tiger ", anchor=" a  lion")  # pyright: ignore
    assert concept == Concept("cat", synonyms=("kitten",), keep=("big tiger",), anchor="a lion")
    assert Request((concept,), keep="fox").kept_texts == ("fox", "big tiger")  # pyright: ignore
    with pytest.raises(BadRequest, match="kept"):
        Request((concept,), keep=(" kitten",))


@pytest.mark.parametrize("field", ["name", "anchor", "label", "synonyms", "keep"])
@pytest.mark.parametrize("value", [7, [7], b"cat"])
def test_what_is_no_text_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(BadRequest, match=f"'{field}'"):
        Concept(**{"name": "cat", field: value})  # pyright: ignore


def test_an_empty_synonym_and_a_kept_number_are_refused() -> None:
    with pytest.raises(BadRequest, match="empty synonym"):
        Concept("cat", synonyms=("kitten", " "))
    with pytest.raises(BadRequest, match="'keep'"):
        Request.build("cat", keep=[7])  # pyright: ignore


def test_a_kind_that_was_given_is_kept() -> None:
    assert Request.build(["scene:dog"]).settle({"dog": "object"}).concepts[0].kind == "scene"


def test_one_text_is_one_concept() -> None:
    assert Request.build("dog", keep="cat") == Request.build(["dog"], keep=["cat"])


def test_kept_texts_are_those_of_the_request_and_of_its_concepts_once_each() -> None:
    request = Request.build([Concept("dog", keep=("wolf", "cat"))], keep=["cat", " cat ", "fox"])
    assert request.kept_texts == ("cat", "fox", "wolf")


@pytest.mark.parametrize(
    ("concepts", "keep", "named"),
    [
        ([], [], "no concept"),
        ([""], [], "empty"),
        (["  =cat"], [], "empty"),
        (["style:"], [], "empty"),
        (["dog", "dog"], [], "'dog'.*twice"),
        (["dog", "DOG=cat"], [], "'DOG'.*twice"),
        ([Concept("dog", synonyms=("puppy",)), "puppy"], [], "'puppy'.*twice"),
        (["dog=dog"], [], "'dog'.*anchor"),
        (["dog= Dog "], [], "'dog'.*anchor"),
        (["dog"], ["Dog"], "'Dog'.*kept"),
        ([Concept("dog", synonyms=("puppy",))], ["puppy"], "'puppy'.*kept"),
        ([Concept("dog", keep=("dog",))], [], "'dog'.*kept"),
        (["thing:dog"], [], "kind 'thing'"),
        (["styl:noto"], [], "'style'"),
        (["sensitive:gore", "person:a king"], [], "'sensitive'.*'person'"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_in_two_lines(
    concepts: list[str | Concept], keep: list[str], named: str
) -> None:
    with pytest.raises(BadRequest, match=named) as caught:
        Request.build(concepts, keep)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2


# --- files ---------------------------------------------------------------------------------------------------------

WANTED = [Concept("dog", "object", "cat", ("puppy", "hound"), ("wolf",), "dog"), Concept("noto", "style")]
FILES = {
    "c.toml": '[[concepts]]\nname="dog"\nkind="object"\nanchor="cat"\nsynonyms=["puppy","hound"]\nkeep=["wolf"]\n'
    '[[concepts]]\nname="noto"\nkind="style"\n',
    "c.yaml": "concepts:\n- {name: dog, kind: object, anchor: cat, synonyms: [puppy, hound], keep: [wolf]}\n"
    "- style:noto\n",
    "c.yml": "- {name: dog, kind: object, anchor: cat, synonyms: puppy; hound, keep: wolf}\n"
    "- {name: noto, kind: style}\n",
    "c.json": json.dumps(
        [{"name": "dog", "kind": "object", "anchor": "cat", "synonyms": ["puppy", "hound"], "keep": ["wolf"],
          "label": "dog"}, "style:noto"]),
    "c.csv": "name,kind,anchor,synonyms,keep\ndog,object,cat,puppy;hound,wolf\nnoto,style\n",
}  # fmt: skip


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_concepts(name: str, mark: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(mark + FILES[name].encode())
    assert read_concepts(tmp_path / name) == WANTED


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    """Notepad and Excel begin UTF-8 files with one."""
    (tmp_path / "lines.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    (tmp_path / "pairs.csv").write_text("concept,base\na cat,a house\n", encoding="utf-8-sig")
    assert read_lines(tmp_path / "lines.txt") == ["cat", "dog"]
    assert read_pairs(tmp_path / "pairs.csv") == {"": [("a cat", "a house")]}


def test_other_files_hold_one_concept_a_line(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("# pets\n\nobject:dog=cat\n  style:noto  \n")
    assert read_concepts(tmp_path / "c.txt") == [Concept("dog", "object", "cat"), Concept("noto", "style")]
    assert read_lines(tmp_path / "c.txt") == ["object:dog=cat", "style:noto"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.toml", b"[[concepts\n"),
        ("c.toml", b"title = 'x'"),
        ("c.json", b"{"),
        ("c.json", b"7"),
        ("c.json", b"[7]"),
        ("c.json", b"[]"),
        ("c.json", b'[{"kind": "style"}]'),
        ("c.json", b'[{"name": 7}]'),
        ("c.json", b'[{"name": "dog", "synonyms": 7}]'),
        ("c.json", b'["dog=dog"]'),
        ("c.json", b'[["dog"]]'),
        ("c.yaml", b"- {name: dog, synonyms: [7]}"),
        ("c.toml", b'[[concepts]]\nname = "dog"\nkeep = [7]'),
        ("c.json", b'[{"name": "dog", "anchor": 7}]'),
        ("c.json", b'[{"name": "dog", "nmae": "x"}]'),
        ("c.yaml", b"a: [b"),
        ("c.yaml", b"just a text"),
        ("c.yaml", b"!!python/object/apply:os.system ['true']"),
        ("c.csv", b"colour,size\nred,2\n"),
        ("c.csv", b"name\ndog,object,more\n"),
        ("c.txt", b"\x89PNG\r\n\x1a\n\x00\xff"),
        ("c.txt", b"\n# nothing\n"),
        ("c.json", b"\xff\xfe"),
    ],
)
def test_a_file_that_is_no_concept_list_is_refused_in_two_lines(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EffaceError) as caught:
        read_concepts(tmp_path / name)
    assert len(str(caught.value).splitlines()) <= 2
    assert isinstance(caught.value, UnknownName) or name in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(WrongFile, match=path.name):
            read_concepts(path)
