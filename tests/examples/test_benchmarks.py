"""The benchmark's corpora, but for fetching their packages."""

import gzip
import hashlib
import importlib
import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


def module(name: str) -> ModuleType:
    """A module of the folder, whose modules import one another by their bare names."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


def document(name: str, text: str) -> Any:
    return module("quickstart").Document(id=name, text=text)


def prose(seed: int, words: int = 80) -> str:
    """Text that shares no twelve words with that of another seed."""
    return " ".join(f"word{seed}x{number}" for number in range(words))


MAN_PAGE = r""".\" A comment
.TH LS 1 "June 2022"
.SH NAME
ls \- list \(lqfiles\(rq
.SH OPTIONS
.PP
Lists the
.BR stat (2)
fields.
.TP
\fB\-a\fP, \fB\-\-all\fP
all of
them
.nf
$ ls \-a
$ ls
.fi
.TS
l l.
a	b
.TE
"""


def test_a_man_page_becomes_filled_paragraphs_with_its_literal_lines_kept() -> None:
    assert module("markup").roff(MAN_PAGE).split("\n") == [
        "NAME",
        "",
        "ls - list “files”",
        "",
        "OPTIONS",
        "",
        "Lists the stat(2) fields.",
        "-a, --all all of them",
        "$ ls -a",
        "$ ls",
    ]


MDOC_PAGE = r""".Dd May 1, 2020
.Sh NAME
.Nm targ
.Nd a driver
.Sh SYNOPSIS
.Ft int
.Fn targ_open "int unit" "int flags"
.Sh DESCRIPTION
The
.Nm
driver takes
.Op Fl v Ar level
.Pq see Xr scsi 4 ,
as
.Xr write 2
does, unlike
.Fn close .
"""


def test_an_mdoc_page_names_itself_its_functions_and_other_pages() -> None:
    assert module("markup").roff(MDOC_PAGE).split("\n\n") == [
        "NAME",
        "targ - a driver",
        "SYNOPSIS",
        "int targ_open(int unit, int flags)",
        "DESCRIPTION",
        "The targ driver takes -v level see scsi 4, as write(2) does, unlike close().",
    ]


def test_html_becomes_what_is_read() -> None:
    page = """<head><title>No</title></head><body><nav>Menu</nav><h1>One</h1><p>Two
        <b>bold</b>&amp;&#x2019;<script>no()</script></p><ul><li>three<li>four</ul><pre>a
  b</pre><svg><text>no</text></svg></body>"""
    assert module("markup").html(page) == "One\n\nTwo bold&\u2019\n\nthree\nfour\n\na\n  b"


def test_a_text_is_cut_at_blank_lines_and_loses_nothing_else() -> None:
    paragraphs = [prose(number) for number in range(9)]
    pieces = module("readers").pieces("a.txt", "\n\n".join(paragraphs))
    assert len(pieces) == 5
    assert "\n\n".join(piece.text for piece in pieces) == "\n\n".join(paragraphs)
    assert [piece.id for piece in pieces] == ["a.txt/1", "a.txt/4", "a.txt/8", "a.txt/12", "a.txt/16"]


def test_a_text_without_blank_lines_is_cut_at_a_line_end() -> None:
    lines = [f"    x{number} = {number}" for number in range(500)]
    pieces = module("readers").pieces("a.py", "\n".join(lines))
    assert max(piece.size for piece in pieces) < 2100
    assert "\n".join(piece.text for piece in pieces).splitlines() == lines


def test_dictionaries_lose_dates_sources_and_the_owners_subjects() -> None:
    readers = module("readers")
    computing = "00-database-info\n   no\n" + "".join(
        f"word{n}\n\n   A {{tool}}.\n\n   (1994-11-08)\n\n" for n in range(99)
    )
    first = next(iter(readers.foldoc(computing)))
    assert first.id == "foldoc/word0/0"
    assert first.text.startswith("word0\n\n   A {tool}.\n\nword1\n\n")
    entry = "Bone \\Bone\\, n.\n   {}The hard part.\n   [1913 Webster]\n\n"
    english = "head\n\nA \\A\\.\n   First.\n" + entry.format("") * 40 + entry.format("(Med.) ")
    assert {line for group in readers.gcide(english) for line in group.text.splitlines()} == {
        "A \\A\\.",
        "   First.",
        "Bone \\Bone\\, n.",
        "   The hard part.",
    }


def test_the_brown_corpus_is_read_without_its_tags() -> None:
    tagged = "\n\n\tThe/at jury/nn said/vbd ,/, ``/`` no/at (/( new/jj )/) evidence/nn ''/'' ./.\n\n" * 30
    text = module("readers").brown("ca01", tagged)[0].text
    assert set(text.splitlines()) == {'The jury said, "no (new) evidence".'}


def test_a_chapter_is_its_name_and_its_verses() -> None:
    verses = {f"Genesis 1:{number}": f"# And [it was] so {prose(number, 5)}." for number in range(1, 9)}
    ((chapter,),) = module("readers").scripture(json.dumps(verses))
    assert chapter.text.splitlines()[:2] == ["Genesis 1", f"1 And it was so {prose(1, 5)}."]


def test_a_weakness_is_its_name_and_its_prose_once() -> None:
    entry = {
        "attr": {"@_Name": "Overflow", "@_ID": "1"},
        "Description": "Too  much.",
        "Notes": [{"Note": "Too much."}, {"Note": {"xhtml:p": ["More."]}}],
        "Demonstrative_Examples": {"Intro_Text": "Look.", "Example_Code": {"xhtml:p": "int i;"}},
    }
    ((only,),) = module("readers").weaknesses(json.dumps({"1": entry}))
    assert only.text == "Overflow\n\nToo much.\n\nMore.\n\nLook."


def test_every_file_gives_a_piece_before_one_gives_two() -> None:
    files = [[document(f"{file}/{piece}", "") for piece in range(pieces)] for file, pieces in enumerate((3, 1, 2))]
    order = [each.id.split("/")[0] for each in module("selection").spread(files)]
    assert order == ["0", "1", "2", "0", "2", "0"]


def test_a_notice_of_many_files_goes_and_a_short_line_stays() -> None:
    notice = "Licensed under the terms that follow, " * 3
    files = [[document(str(number), f"NAME\n\n{notice}\n\n{prose(number)}")] for number in range(4)]
    kept = module("selection").without_notices(files)
    assert [file[0].text for file in kept] == [f"NAME\n\n{prose(number)}" for number in range(4)]


def test_near_duplicates_and_unreadable_sizes_go() -> None:
    documents = [
        document("a", prose(1)),
        document("b", prose(1) + " and more"),
        document("c", "short"),
        document("d", prose(2, 900)),
        document("e", prose(3)),
    ]
    assert [each.id for each in module("selection").unique(documents)] == ["b", "e"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A package of ten licences and one packed page."""
    cache = tmp_path / "cache"
    cache.mkdir()
    files = {f"package/licenses/L{n}.json": json.dumps({"licenseText": prose(n, 150)}).encode() for n in range(10)}
    files["package/man/a.1.gz"] = gzip.compress(f".SH NAME\n{prose(77, 150)}\n".encode())
    with tarfile.open(cache / "made.tgz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return cache


@pytest.fixture
def corpora(archive: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with two corpora of the made package and nothing pinned."""
    script, domains, readers = module("corpora"), module("domains"), module("readers")
    digest = hashlib.sha256((archive / "made.tgz").read_bytes()).hexdigest()
    package = replace(module("sources").SPDX, archive="made.tgz", sha256=digest)
    made = {"law": domains._of_files(readers.licences, package), "unix": domains._of_files(readers.man_pages, package)}
    monkeypatch.setattr(script, "CORPORA", made)
    monkeypatch.setattr(script, "PINS", archive / "corpora.json")
    return script


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["corpora.py", *map(str, arguments)])
    code: int = script.main()
    return code


def test_a_corpus_is_the_same_bytes_again(corpora: ModuleType, archive: Path, tmp_path: Path) -> None:
    built = [corpora.build(["law", "unix"], tmp_path / out, archive, {}) for out in ("one", "two")]
    assert built[0] == built[1]
    assert built[0]["law"]["documents"] == 10
    lines = (tmp_path / "one" / "law.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["text"] for line in lines} == {prose(number, 150) for number in range(10)}
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["law.jsonl", "unix.jsonl"]


def test_a_corpus_as_pinned_is_left_and_another_is_replaced(
    corpora: ModuleType,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--out", tmp_path / "out", "--cache", archive, "--only", "law")
    assert run(corpora, monkeypatch, *arguments) == 1
    assert "not as pinned in corpora.json: law" in capsys.readouterr().err
    assert run(corpora, monkeypatch, *arguments, "--pin") == 0
    (archive / "made.tgz").unlink()
    assert run(corpora, monkeypatch, *arguments, "--json") == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(printed)["law"]["source"] == "npm spdx-license-list 6.12.0"


def test_the_readme_and_the_pins_name_every_corpus_source_and_licence() -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    script = module("corpora")
    words = [*script.CORPORA]
    for corpus in script.CORPORA.values():
        words += [word for package in corpus.packages for word in (package.name, package.version, package.licence)]
    pins = json.loads((BENCHMARKS / "corpora.json").read_text(encoding="utf-8"))
    words += [f"{pin['documents']:,} | {pin['bytes']:,}" for pin in pins.values()]
    assert [word for word in words if word not in readme] == []
    assert list(pins) == list(script.CORPORA)


def test_every_corpus_is_large_enough_to_learn_from() -> None:
    pins = json.loads((BENCHMARKS / "corpora.json").read_text(encoding="utf-8"))
    assert len(pins) >= 17
    assert all(1_000_000 < pin["bytes"] <= 6_000_000 and pin["documents"] > 1000 for pin in pins.values())
