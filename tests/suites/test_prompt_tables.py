"""The user's own prompt files: dialects are understood, what is unclear is refused with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efface import registry
from efface.errors import BadRequest, EffaceError, WrongFile
from efface.gallery.images import Images
from efface.gallery.shot import veiled
from efface.request import Request
from efface.suites import Known, Plan
from efface.suites._tables import read_table

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(content: str | bytes) -> Path:
        file = tmp_path / "prompts.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return made


def plan(name: str, *concepts: str, **settings: object) -> Plan:
    return registry.configure(name, dict(settings), "suites").plan(Request.build(concepts), Known())


DIALECTS = {
    "imagenette": "case_number,prompt,class,evaluation_seed\n0,a red box,box,7\n1,a blue box,box,8\n",
    "esd": "case_number,source,prompt,evaluation_seed,coco_id\n0,coco,a red box,7,5\n1,coco,a blue box,8,6\n",
    "image id": "image_id,source,prompt,evaluation_seed\n0,coco,a red box,7\n1,coco,a blue box,8\n",
    "i2p": ",prompt,categories,sd_seed,sd_guidance_scale\n0,a red box,a,7,5\n1,a blue box,b,8,9.5\n",
    "i2p again": "Unnamed: 0,prompt,categories,evaluation_seed,evaluation_guidance\n"
    "0,a red box,a,7,5\n1,a blue box,b,8,9\n",
    "fia": ",Unnamed: 0,case_number,prompt,evaluation_seed,artists,evaluation_guidance,base\n"
    "0,0,0,a red box,7,x,7.5,y\n1,1,1,a blue box,8,x,7.5,y\n",
    "adversarial": "prompt,case_number,evaluation_seed\na red box,0,7\na blue box,1,8\n",
    "mma": "target_prompt,adv_prompt,evaluation_seed\nx,a red box,7\ny,a blue box,8.0\n",
    "mark of order": "\ufeffprompt,evaluation_seed\r\na red box,7\r\na blue box,8\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_is_understood(name: str, write: Write) -> None:
    table = read_table(write(DIALECTS[name]))
    assert [r.prompt for r in table.rows] == ["a red box", "a blue box"]
    assert [r.seed for r in table.rows] == [7, 8]


def test_texts_that_look_like_nothing_stay_texts(write: Write) -> None:
    """E-11: nan, None, NA and the empty prompt; line breaks and commas inside quotes."""
    prompts = ["nan", "None", "NA", "", "two\nlines, and more", 'with "quotes"']
    quoted = ['"' + p.replace('"', '""') + '"' for p in prompts]
    text = "prompt,seed\n" + "".join(f"{q},{k}\n" for k, q in enumerate(quoted))
    assert [r.prompt for r in read_table(write(text)).rows] == prompts


def test_large_seeds_survive_the_loader(write: Write) -> None:
    """E-10: unsigned 32 bits and more; a negative one raises."""
    assert read_table(write("prompt,seed\na,4290749014\n")).rows[0].seed == 4_290_749_014
    with pytest.raises(WrongFile, match="seed -1"):
        read_table(write("prompt,seed\na,-1\n"))


BAD = {
    "not utf-8": (b"prompt,seed\n\xff\xfe,1\n", "line 2 is not UTF-8"),
    "binary": (b"\x89PNG\x00\x00", "zero bytes"),
    "no header": ("a red box,7\n", "no column of prompts"),
    "empty": ("", "no column of prompts"),
    "header alone": ("prompt,seed\n", "no prompt"),
    "ragged": ("prompt,seed\na, b,7\n", "line 2: 3 columns"),
    "short row": ("prompt,seed\na\n", "line 2: 1 columns"),
    "seed is a word": ("prompt,seed\na,many\n", "line 2: seed is 'many'"),
    "half a seed": ("prompt,seed\na,1.5\n", "'1.5'"),
    "guidance is a word": ("prompt,evaluation_guidance\na,strong\n", "'strong'"),
    "duplicate id": ("case_number,prompt\n5,a\n6,b\n5,c\n", "line 4: id '5' stands already on line 2"),
    "duplicate column": ("prompt,prompt\na,b\n", "two columns"),
    "open quote": ('prompt,seed\n"a,1\n', "no CSV"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_table_is_refused_with_its_line_and_left_alone(name: str, write: Write) -> None:
    content, words = BAD[name]
    file = write(content)
    before = file.read_bytes()
    with pytest.raises(WrongFile, match=words) as raised:
        read_table(file)
    assert len(str(raised.value).splitlines()) <= 2
    assert file.read_bytes() == before


def test_missing_seeds_are_asked_for_and_may_be_the_rows_number(write: Write) -> None:
    file = write("prompt,case_number\na,1\nb,2\n")
    with pytest.raises(WrongFile, match="seeds=row"):
        plan("coco-30k", "dog", file=file)
    assert [i.seed for i in plan("coco-30k", "dog", file=file, seeds="row").items] == [0, 1]
    assert [i.seed for i in plan("coco-30k", "dog", file=file, seeds="zero").items] == [0, 0]


@pytest.mark.parametrize("name", ["i2p", "coco-30k", "ring-a-bell"])
def test_a_suite_without_its_file_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="--set file=PATH"):
        plan(name, "dog")
    with pytest.raises(WrongFile, match="check the path"):
        plan(name, "dog", file=tmp_path / "none.csv")


def test_i2p_takes_seeds_and_guidance_of_the_file_and_counts_its_prompts(write: Write) -> None:
    text = ',prompt,categories,evaluation_seed,evaluation_guidance\n0,a,"x, y",7,5\n1,b,x,8,12.5\n2,b,y,8,12.5\n'
    found = plan("i2p", "sensitive:anything", file=write(text), kept=0)
    assert [(i.seed, i.shot.guidance) for i in found.items] == [(7, 5.0), (8, 12.5)]
    assert {(a.role, a.label) for i in found.items for a in i.asks} == {("sensitive", "sensitive")}
    assert "3 prompts" in found.not_measured[0]
    assert "1 rows repeat" in found.not_measured[1]
    assert len(plan("i2p", "dog", file=write(text), kept=0, category="Y").items) == 2
    assert {i.shot.guidance for i in plan("i2p", "dog", file=write(text), kept=0, guidance="run").items} == {None}
    with pytest.raises(BadRequest, match="category"):
        plan("i2p", "dog", file=write(text), kept=0, category="z")
    suite = registry.configure("i2p", {}, "suites")
    assert suite.private
    assert veiled("secret") == veiled("secret") != veiled("secrets")
    assert "secret" not in veiled("secret")


def test_captions_that_name_a_target_are_left_out_and_counted(write: Write) -> None:
    text = "prompt,evaluation_seed\na dog runs,1\na hotdog,2\na Dog.,3\na cat,4\n"
    found = plan("coco-30k", "dog", file=write(text))
    assert [i.prompt for i in found.items] == ["a hotdog", "a cat"]
    assert "2 captions that name a target are left out" in found.not_measured
    with pytest.raises(BadRequest, match="every caption"):
        plan("coco-30k", "dog", file=write("prompt,seed\na dog,1\n"))


def test_prompts_of_an_attack_may_be_lines_of_any_bytes(write: Write) -> None:
    file = write(b"soup \xff one\n\nsoup two\n")
    found = plan("ring-a-bell", "dog", file=file, headerless=True, kept=0)
    assert [i.prompt for i in found.items] == ["soup \ufffd one", "soup two"]
    assert [i.seed for i in found.items] == [0, 1]
    assert found.items[0].asks[0].label == "dog"


def test_the_grid_comes_from_lists_or_from_a_folder_of_answers(tmp_path: Path) -> None:
    (tmp_path / "styles.txt").write_text("Old_Photo\nSketch\n")
    (tmp_path / "objects.txt").write_text("Dogs\nTrees\n")
    files = {"styles": tmp_path / "styles.txt", "objects": tmp_path / "objects.txt"}
    found = plan("unlearncanvas", "style:Sketch", **files)
    assert len(found.items) == 2 * 2 * 5
    assert found.items[0].prompt == "A Dogs image in Old Photo style."
    assert sorted({i.seed for i in found.items}) == [188, 288, 588, 688, 888]
    assert {(a.role, a.label) for i in found.items for a in i.asks} == {
        ("other-style", "Old Photo"), ("style", "Sketch"), ("other", "Dogs"), ("other", "Trees"),
    }  # fmt: skip
    with pytest.raises(BadRequest, match="no style or object"):
        plan("unlearncanvas", "dog", **files)
    with pytest.raises(BadRequest, match="folder=DIR"):
        plan("unlearncanvas", "dog")
    answers = tmp_path / "answers"
    answers.mkdir()
    store = Images(tmp_path / "made")
    store.put("a" * 32, np.zeros((4, 4, 3), np.uint8))
    for style in ("Old_Photo", "Sketch"):
        (answers / f"{style}_Dogs_seed188.png").write_bytes(store.png("a" * 32))
    assert len(plan("unlearncanvas", "Dogs", folder=answers, seeds="188").items) == 2
    (answers / "broken.png").write_bytes(b"no picture")
    with pytest.raises(WrongFile, match=r"broken\.png"):
        plan("unlearncanvas", "Dogs", folder=answers)


def test_settings_of_a_suite_come_as_text_and_are_checked() -> None:
    suite = registry.configure("world-standard", {"targets": "5", "half": "tune"}, "suites")
    assert (suite.targets, suite.half) == (5, "tune")
    for wrong in ({"targets": "many"}, {"target": "5"}):
        with pytest.raises(EffaceError):
            registry.configure("world-standard", wrong, "suites")
