import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from models.common import data as common
from models.sentiment.data import (
    Phrase,
    Review,
    binary,
    clean,
    hold_out,
    phrases_of,
    read_imdb,
    read_imdb_archive,
    read_sst,
    read_sst_archive,
)

TREES = "(3 (2 A) (4 (4 lovely) (2 film\\/thing)))\n(1 (2 -LRB-) (1 dull))\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root of its own, so that no test reads the developer's."""
    monkeypatch.setenv(common.ENVIRONMENT, str(tmp_path))
    return tmp_path


def write_imdb_archive(path: Path) -> None:
    members = {
        "aclImdb/README": "no review",
        "aclImdb/train/pos/10_9.txt": "Fine.<br /><br />Really\u0085fine.",
        "aclImdb/train/pos/2_7.txt": "Good.",
        "aclImdb/train/neg/0_3.txt": "Bad.",
        "aclImdb/train/unsup/0_0.txt": "Unlabelled.",
        "aclImdb/test/neg/0_2.txt": "Of the test split.",
        "aclImdb/train/urls_pos.txt": "".join(f"http://www.imdb.com/title/tt{i:07}/usercomments\n" for i in range(11)),
        "aclImdb/train/urls_neg.txt": "http://www.imdb.com/title/tt0064354/usercomments\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            raw = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))


IMDB_REVIEWS = [
    Review("train/neg/0_3", "tt0064354", "Bad.", 0),
    Review("train/pos/2_7", "tt0000002", "Good.", 1),
    Review("train/pos/10_9", "tt0000010", "Fine.  Really\u0085fine.", 1),
]


def test_the_official_imdb_archive_is_read(tmp_path: Path) -> None:
    """Training reviews only, by class and number, each with the film of its number, mark-up replaced."""
    write_imdb_archive(tmp_path / "a.tar.gz")
    assert read_imdb_archive(tmp_path / "a.tar.gz") == IMDB_REVIEWS


def test_archive_and_local_file_give_the_same_reviews(root: Path) -> None:
    """A seed means the same training whichever form the data came in; the local file is preferred."""
    (root / "imdb").mkdir()
    write_imdb_archive(root / "imdb" / "aclImdb_v1.tar.gz")
    assert read_imdb() == IMDB_REVIEWS
    records = [{"id": r.id, "movie": r.film, "text": r.text, "label": r.label} for r in IMDB_REVIEWS[:2]]
    with lzma.open(root / "imdb" / "train.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    assert read_imdb() == IMDB_REVIEWS[:2]


def test_another_archive_is_refused(tmp_path: Path) -> None:
    """A tar file without the folders is an error that says so, not an empty data set."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match="not the IMDB archive"):
        read_imdb_archive(tmp_path / "a.tar.gz")


def test_the_official_treebank_is_read(root: Path) -> None:
    """Trees come out of the zip file or the local copy alike."""
    (root / "sst").mkdir()
    with zipfile.ZipFile(root / "sst" / "trainDevTestTrees_PTB.zip", "w") as archive:
        archive.writestr("trees/train.txt", TREES)
    assert read_sst_archive(root / "sst" / "trainDevTestTrees_PTB.zip", "train") == TREES
    from_zip = read_sst("train")
    (root / "sst" / "trees").mkdir()
    (root / "sst" / "trees" / "train.txt.xz").write_bytes(lzma.compress(TREES.encode()))
    assert read_sst("train") == from_zip
    assert [phrase.text for phrase in from_zip if phrase.root] == ["A lovely film/thing", "( dull"]


def test_phrases_of_a_tree() -> None:
    """Every node is a phrase with its own score; the escapes of the treebank are undone."""
    assert list(phrases_of("(1 (2 -LRB-) (0 (2 **\\*) (1 x\\/y)))")) == [
        Phrase("(", 2, root=False),
        Phrase("***", 2, root=False),
        Phrase("x/y", 1, root=False),
        Phrase("*** x/y", 0, root=False),
        Phrase("( *** x/y", 1, root=True),
    ]


def test_binary_labels() -> None:
    """Neutral phrases are dropped and repeated ones kept once; sentences are all kept."""
    phrases = [
        Phrase("a", 0, root=True),
        Phrase("b", 2, root=True),
        Phrase("a", 1, root=True),
        Phrase("c", 4, root=False),
    ]
    assert binary(phrases, roots_only=False) == [("a", 0), ("c", 1)]
    assert binary(phrases, roots_only=True) == [("a", 0), ("a", 0)]


def test_held_out_reviews_are_of_whole_films() -> None:
    """No film on both sides, at least the number asked for, all reviews somewhere, the seed decides."""
    reviews = [Review(str(i), f"tt{i % 37}", "", 0) for i in range(200)]
    train, held = hold_out(reviews, count=30, seed=3)
    assert not {review.film for review in train} & {review.film for review in held}
    assert 30 <= len(held) < 36
    assert sorted([*train, *held], key=lambda review: int(review.id)) == reviews
    assert hold_out(reviews, count=30, seed=3) == (train, held)
    assert hold_out(reviews, count=30, seed=4) != (train, held)


def test_line_breaks_of_the_web_page_are_cleaned() -> None:
    """The mark-up goes, the words around it stay apart."""
    assert clean("end.<br /><br />Next<br>line") == "end.  Next line"


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """U+0085 and U+2028 stand inside reviews and must not cut a record."""
    record = {"text": "one\u0085two\u2028three"}
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(lzma.compress((json.dumps(record, ensure_ascii=False) + "\n").encode()))
    assert list(common.read_json_lines(path)) == [record]


def test_a_named_data_root_is_the_only_one(root: Path) -> None:
    """Whoever sets STATESTREAM_DATA gets nothing from elsewhere, and downloads go there."""
    assert common.data_roots() == [root]
    assert common.locate("imdb/train.jsonl.xz") is None


def test_a_download_is_checked_and_its_licence_shown(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checksum goes to the downloader, the licence to the user; what is there is not fetched again."""
    pooch = pytest.importorskip("pooch")
    asked: list[dict[str, object]] = []

    def retrieve(url: str, **options: object) -> str:
        asked.append({"url": url, **options})
        target = root / "toy" / "toy.zip"
        target.parent.mkdir()
        target.write_bytes(b"zip")
        return str(target)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    archive = common.Archive("toy", "toy.zip", "https://example.org/toy.zip", "sha256:00", "do what you like")
    assert common.fetch(archive) == common.fetch(archive) == tmp_path / "toy" / "toy.zip"
    assert len(asked) == 1
    assert asked[0]["known_hash"] == "sha256:00"
    assert asked[0]["path"] == root / "toy"
    assert "do what you like" in capsys.readouterr().err
