"""Tables, lists and lines of the user: read by their ending in one way, refused with the line and the cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Cli
from efface import registry
from efface.errors import EffaceError, WrongFile
from efface.prompts import read_pairs
from efface.prompts.tables import read_rows
from efface.request import Concept, Request, read_concepts, read_lines
from efface.suites import Known


def made(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refusal(reader: object, file: Path) -> str:
    with pytest.raises(EffaceError) as caught:
        reader(file)  # pyright: ignore[reportCallIssue]
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert str(file) in said
    return said


def test_a_quoted_line_break_is_a_blank_in_a_name_and_stays_in_a_prompt(tmp_path: Path) -> None:
    names = made(tmp_path, "c.csv", 'name,kind\r\n"traffic\r\nlight",object\r\n"a\n\n cat",\n')
    assert [c.name for c in read_concepts(names)] == ["traffic light", "a cat"]
    assert [r.prompt for r in read_rows(made(tmp_path, "p.csv", 'prompt\n"two\nlines"\n'))] == ["two\nlines"]
    pairs = made(tmp_path, "pairs.csv", 'concept,base\n"a cat\non grass","a house"\n')
    assert read_pairs(pairs) == {"": [("a cat\non grass", "a house")]}


def test_lines_are_counted_through_quoted_line_breaks(tmp_path: Path) -> None:
    table = made(tmp_path, "p.csv", 'prompt,seed\n"two\nlines",1\nfox,many\n')
    assert "line 4: seed is 'many'" in refusal(read_rows, table)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_line_ends_at_a_line_feed_and_nowhere_else(ending: str, tmp_path: Path) -> None:
    soup = ["fox \x1d lamp", "\x0clion \x85", "dog \u2028 paws \x00 tail", "\x1c# owl"]
    file = made(tmp_path, "soup.txt", ending.join(soup) + ending)
    assert read_lines(file) == soup
    assert [r.prompt for r in read_rows(file, headerless=True)] == soup


FORMS = {
    "k.csv": "id,name,more\n1,fox,x\n2,wolf,y\n",
    "k.tsv": "text\tmore\nfox\tx\nwolf\ty\n",
    "k.jsonl": '"fox"\n{"text": "wolf"}\n',
    "k.json": json.dumps({"keep": ["fox", {"name": "wolf"}]}),
    "k.toml": 'keep = ["fox", "wolf"]\n',
    "k.yaml": "- fox\n- wolf\n",
    "k.txt": "fox\n# no\nwolf\n",
    "k": "fox\nwolf",
}


@pytest.mark.parametrize("name", FORMS)
def test_a_keep_file_is_read_by_its_ending(name: str, tmp_path: Path) -> None:
    assert read_lines(made(tmp_path, name, FORMS[name])) == ["fox", "wolf"]


PROMPTS = {
    "p.csv": "prompt,seed\na fox,3\na lion,4\n",
    "p.tsv": "prompt\tsd_seed\na fox\t3\na lion\t4.0\n",
    "p.jsonl": '{"prompt": "a fox", "seed": 3}\n{"prompt": "a lion", "seed": 4}\n',
    "p.json": '[{"caption": "a fox", "seed": 3}, {"caption": "a lion", "seed": "4"}]',
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_table_is_read_by_its_ending(name: str, tmp_path: Path) -> None:
    rows = read_rows(made(tmp_path, name, PROMPTS[name]))
    assert [(r.prompt, r.seed) for r in rows] == [("a fox", 3), ("a lion", 4)]


CAUSES = {
    "semicolons": ("c.csv", "name;kind\ncat;object\n", "semicolons"),
    "tabs": ("c.csv", "name\tkind\ncat\tobject\n", "tabs"),
    "a line for a spreadsheet": ("c.csv", "sep=;\nname;kind\n", "semicolons"),
    "UTF-16 with a mark": ("c.csv", "name\ncat\n".encode("utf-16"), "UTF-16"),
    "UTF-16 without": ("c.txt", "a cat\n".encode("utf-16-le"), "UTF-16"),
    "another alphabet": ("c.txt", b"cat\n\xe9clair\n", "line 2 is not UTF-8"),
    "zero bytes": ("c.csv", b"name\ncat\nd\0g\n", "line 3 holds zero bytes"),
    "a workbook": ("c.xlsx", b"PK\x03\x04", "save the table as CSV"),
    "ragged": ("c.csv", "name\ndog\ncat,object\n", "line 3: 2 columns where the header has 1"),
    "open quote": ("c.csv", 'name\ndog\n"cat\n', "line 3 is no CSV"),
    "a name twice": ("c.csv", "name\ndog\ncat\nDog\n", "line 4: 'Dog' stands already at"),
    "a name twice in lines": ("c.txt", "dog\n\ncat\ndog\n", "line 4: 'dog' stands already at"),
    "a control character": ("c.txt", "cat\nd\x1b[31mog\n", "line 2: 'name' holds a control character"),
    "unknown column": ("c.csv", "name,nmae\ndog,x\n", "line 2: unknown field"),
    "unknown kind": ("c.toml", 'concepts = ["dog", "thing:cat"]', "entry 2: unknown kind"),
    "no name": ("c.json", '["dog", {"kind": "object"}]', "entry 2 is no concept: it lacks 'name'"),
    "half a character": ("c.json", '["d\\ud800g"]', "lone surrogate"),
    "deep": ("c.json", "[" * 100_000, "nested too deeply"),
    "deep table": ("c.toml", "a = " + "[" * 5000, "c.toml"),
    "deep list": ("c.yaml", "[" * 5000, "c.yaml"),
    "aliases": ("c.yaml", "a: &a [x, x]\nb: [*a, *a]\n", "line 2 holds an alias"),
    "endless number": ("c.json", "[" + "9" * 5000 + "]", "c.json"),
    "torn": ("c.json", '["dog",', "line 1 column"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_list_that_cannot_be_read_is_refused_with_place_and_cause(name: str, tmp_path: Path) -> None:
    file, content, words = CAUSES[name]
    assert words in refusal(read_concepts, made(tmp_path, file, content))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "c.csv")
    for reader in (read_concepts, read_lines, read_rows):
        assert "no file" in refusal(reader, tmp_path / "c.csv")


def test_a_keep_table_without_a_known_column_or_text_is_refused(tmp_path: Path) -> None:
    assert "no column of texts" in refusal(read_lines, made(tmp_path, "k.csv", "colour\nred\n"))
    assert "line 3: the text is empty" in refusal(read_lines, made(tmp_path, "k.csv", "name,x\nfox,1\n,2\n"))


def test_a_row_without_a_seed_is_named_and_all_are_counted(tmp_path: Path) -> None:
    file = made(tmp_path, "c.csv", "prompt,evaluation_seed\na fox,3\na lion,\na dog,5\na cat, \n")
    suite = registry.configure("coco-30k", {"file": file}, "suites")
    with pytest.raises(WrongFile, match=r"line 3: the seed is missing \(2 of 4 rows have none\)"):
        suite.plan(Request.build(["rabbit"]), Known())


def test_names_that_look_like_a_list_are_said() -> None:
    said = Request.build(["cat; dog", "fox,wolf", "Paris, France", "owl"], keep=["hen;", "a cat, sitting"])
    assert said.lists_in_one() == ("cat; dog", "fox,wolf", "Paris, France", "hen;", "a cat, sitting")
    assert "Paris, France" not in said.lists_in_one(known=["paris, france"])
    whole = "a quiet street in the evening, painted by somebody who knew it well"
    assert Request.build(["owl"], keep=[whole]).lists_in_one() == ()


def test_a_name_with_half_a_character_or_a_control_character_is_refused() -> None:
    for name in ("d\udce9g", "d\x1bg", "d\x9bg", "d\u202eg"):
        with pytest.raises(EffaceError, match="'name' holds"):
            Concept(name)
    assert Request.build(["dog"], keep=["fox \x1d lamp"]).keep == ("fox \x1d lamp",)


def test_generate_draws_the_prompts_and_seeds_of_a_table(cli: Cli, tmp_path: Path) -> None:
    table = made(tmp_path, "p.csv", "id,prompt,seed\n0,a fox,3\n1,a lion,4\n")
    hole = made(tmp_path, "hole.csv", "prompt,seed\na fox,3\na lion,\n")
    common = ("--steps", 1, "--json", "--quiet")
    said = cli("generate", "micro", "--prompts", table, *common, "-o", tmp_path / "own")
    assert [(i["file"], i["prompt"], i["seed"]) for i in said.json()["images"]] == [
        ("0000-3.png", "a fox", 3), ("0001-4.png", "a lion", 4),
    ]  # fmt: skip
    said = cli("generate", "micro", "--prompts", table, "--seeds", "7-8", *common, "-o", tmp_path / "given")
    assert [i["seed"] for i in said.json()["images"]] == [7, 8, 7, 8]
    refused = cli("generate", "micro", "--prompts", hole, *common, "-o", tmp_path / "none")
    assert refused.code == 1
    assert "line 3: the seed is missing" in refused.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("seeds", ["0-1000000000", "²", "0-3,2", "5-3", "-1", "99999999999999999999"])
def test_seeds_that_are_too_many_or_none_are_refused(seeds: str, cli: Cli, tmp_path: Path) -> None:
    said = cli("generate", "micro", "--prompt", "x", f"--seeds={seeds}", "-o", tmp_path / "o")
    assert said.code == 2
    assert "seed" in said.err
    assert len(said.err.splitlines()) == 1
