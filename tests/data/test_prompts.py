"""Prompts from files of every form, and which stream has which."""

import csv
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmqbench.data.prompts import PromptError, read_prompts, read_streams

TEXTS = ["a red fox", "", 'two "quoted", words', "ünïcode 🎈", "  spaced  ", "x" * 3000]


def coco(captions):
    """A COCO annotation file's content: (id, image, caption) each."""
    return json.dumps({"annotations": [{"id": id, "image_id": image, "caption": text} for id, image, text in captions]})


def texts(path, column=None):
    return [prompt.text for prompt in read_prompts(path, column)]


def test_every_form_gives_back_what_was_written(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    (tmp_path / "windows.txt").write_bytes("\ufeff".encode() + "\r\n".join(TEXTS).encode())
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("id", "caption"), *enumerate(TEXTS)])
    with open(tmp_path / "a.tsv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("mine", "prompt"), *((text, "other") for text in TEXTS)])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name, column in {"a.txt": None, "windows.txt": None, "a.csv": None, "a.tsv": "mine", "a.jsonl": None}.items():
        assert texts(tmp_path / name, column) == TEXTS, name


def test_of_coco_each_image_has_its_first_caption_whatever_the_order_of_the_file(tmp_path):
    captions = [(10 * image + number, image, f"{image} {number}") for image in range(50) for number in (2, 1)]
    (tmp_path / "one.json").write_text(coco(captions))
    (tmp_path / "other.json").write_text(coco(reversed(captions)))
    found = read_prompts(tmp_path / "one.json")
    assert found == read_prompts(tmp_path / "other.json")
    assert sorted(prompt.text for prompt in found) == sorted(f"{image} 1" for image in range(50))
    assert [prompt.id for prompt in found] == [10 * int(prompt.text.split()[0]) + 1 for prompt in found]
    assert [prompt.id for prompt in found] != sorted(prompt.id for prompt in found)


WRONG = {
    "absent.txt": (None, "No such file"),
    "empty.txt": ("", "holds no prompts"),
    "latin.txt": (b"caf\xe9", "not text in UTF-8"),
    "none.csv": ("id,words\n1,a\n", "no text in column prompt of row 1; columns: id, words"),
    "short.csv": ("id,prompt\n1,a\n2\n", "no text in column prompt of row 2"),
    "broken.jsonl": ('{"prompt": "a"}\n{"prompt"\n', "cannot be read as jsonl"),
    "list.jsonl": ("[1]\n", "row 1 is no JSON object"),
    "number.jsonl": ('{"prompt": 3}\n', "no text in column prompt of row 1"),
    "instances.json": ('{"annotations": [{"id": 1, "image_id": 1, "bbox": []}]}', "as COCO has"),
    "text.json": ("hello", "cannot be read as json"),
    "folder.txt": (None, "cannot be read (Is a directory)"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n", "not text in UTF-8"),
    "utf16.txt": ("a\nb\n".encode("utf-16-le"), "has a prompt, number 1, with NUL in it"),
    "half.jsonl": ('{"prompt": "a"}\n{"prompt": "\\ud800"}\n', "has a prompt, number 2, with half a surrogate pair"),
    "book.txt": ("a\n" + "word " * 20_001, "has a prompt, number 2, of 100005 characters: 100000 at most"),
    "quotes.csv": ('prompt\n"a\nb\n', "cannot be read as csv (unexpected end of data)"),
    "SEMICOLONS.CSV": ("id;prompt\n1;a\n", "no text in column prompt of row 1; columns: id;prompt"),
}


@pytest.mark.parametrize(("name", "content", "said"), [(name, *rest) for name, rest in WRONG.items()], ids=WRONG)
def test_what_holds_no_prompts_is_refused_in_one_line(tmp_path, name, content, said):
    if name == "folder.txt":
        (tmp_path / name).mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PromptError) as error:
        read_prompts(tmp_path / name)
    assert said in error.value.reason and "\n" not in str(error.value)


def test_only_tables_have_columns(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(PromptError, match=r"has no columns"):
        read_prompts(tmp_path / "a.txt", "prompt")


LINES = st.lists(st.text("ab 1", max_size=4), min_size=1, max_size=30)


@given(evaluation=LINES, calibration=st.none() | LINES)
def test_no_prompt_is_in_two_streams(tmp_path_factory, evaluation, calibration):
    folder = tmp_path_factory.mktemp("prompts")
    paths = []
    for name, lines in (("eval.txt", evaluation), ("cal.txt", calibration)):
        if lines is not None:
            (folder / name).write_text("".join(f"{line}\n" for line in lines))
        paths.append(None if lines is None else str(folder / name))
    try:
        streams = read_streams(*paths)
    except PromptError as error:
        assert "prompts" in error.reason
        return
    plain = {name: {" ".join(each.text.split()) for each in prompts} for name, prompts in streams.of.items()}
    assert all(plain.values())
    assert not plain["eval"] & (plain["cal"] | plain["val"]) and not plain["cal"] & plain["val"]
    if calibration is not None:
        assert [each.text for each in streams.of["eval"]] == evaluation
    assert streams.texts("eval", 40)[len(streams.of["eval"])] == streams.of["eval"][0].text


def test_files_are_read_once_as_long_as_both_stay_as_they_are(tmp_path):
    paths = [tmp_path / "eval.txt", tmp_path / "cal.txt"]
    for path, lines in zip(paths, ("a\nb\n", "c\nd\n"), strict=True):
        path.write_text(lines)
    time.sleep(0.15)  # a file that was written just now may be written again at the same time of its clock
    known = read_streams(*paths)
    assert read_streams(*paths) is known and read_streams(paths[1], paths[0]) is not known
    paths[1].write_text("e\nf\n")
    assert [prompt.text for prompt in read_streams(*paths).of["cal"]] == ["e"]
