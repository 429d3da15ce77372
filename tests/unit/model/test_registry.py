"""What is found in folders of models, and what an operator's file may say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from models.common.manifest import ArtefactError
from services.runtime.config import Settings
from services.runtime.model.limits import ServingFile, load_serving_file
from services.runtime.model.registry import read_artefact, scan, version_key
from tests.kit.folders import Folders

if TYPE_CHECKING:
    from pathlib import Path


def test_versions_are_ordered_as_people_do() -> None:
    """Numbers by value, part by part; a longer one after the shorter one that it begins with."""
    versions = ["10", "9", "1.10", "1.9", "1", "2-rc1", "2"]
    assert sorted(versions, key=version_key) == ["1", "1.9", "1.10", "2", "2-rc1", "9", "10"]


def test_only_what_may_be_a_version_is_found(tmp_path: Path) -> None:
    """Files, hidden folders and empty ones are not; a folder without a manifest is, and is not complete."""
    folders = Folders(tmp_path)
    folders.add("1")
    folders.add("2", manifest=False)
    (tmp_path / "toy" / ".3").mkdir()
    (tmp_path / "toy" / "4").mkdir()
    (tmp_path / "toy" / "README.md").write_text("not a version")
    (tmp_path / "README.md").write_text("not a model")
    found = scan([tmp_path]).versions
    assert {name: {version: files.complete for version, files in each.items()} for name, each in found.items()} == {
        "toy": {"1": True, "2": False}
    }


def test_what_could_not_be_looked_at_is_not_gone(tmp_path: Path) -> None:
    """A root that is missing says nothing of what was in it; a folder that is missing in a root that is there does."""
    one, two = Folders(tmp_path / "one"), Folders(tmp_path / "two")
    one.add("1")
    two.add("2")
    before = scan([one.root, two.root]).versions["toy"]
    one.root.rename(tmp_path / "away")
    two.remove("2")
    after = scan([one.root, two.root])
    assert after.unread == {one.root}
    assert not after.is_gone(before["1"])
    assert after.is_gone(before["2"])


def test_a_change_shows_in_the_fingerprint(tmp_path: Path) -> None:
    """Also one that leaves size and time as they were, where the file is another one."""
    folders = Folders(tmp_path)
    folders.add("1", b"first")
    path = tmp_path / "toy" / "1" / "model.onnx"
    before, times = scan([tmp_path]).versions["toy"]["1"], path.stat()
    assert scan([tmp_path]).versions["toy"]["1"] == before
    other = tmp_path / "other"
    other.write_bytes(b"other")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert scan([tmp_path]).versions["toy"]["1"] != before


@pytest.mark.parametrize(("name", "version"), [("toy", "2"), ("other", "1")])
def test_a_manifest_belongs_to_its_folder(tmp_path: Path, name: str, version: str) -> None:
    """That of another model or version is refused by name."""
    Folders(tmp_path).add("1")
    target = tmp_path / name / version
    target.parent.mkdir(exist_ok=True)
    (tmp_path / "toy" / "1").rename(target)
    with pytest.raises(ArtefactError, match=r"manifest\.json: is that of"):
        read_artefact(scan([tmp_path]).versions[name][version])


def test_folders_are_given_like_those_of_path() -> None:
    """One or several in the variable, and an empty part is none."""
    values = {text: Settings(artefacts=text).artefacts for text in ("/a", f"/a{os.pathsep}/b{os.pathsep}")}  # pyright: ignore[reportArgumentType]
    assert [[str(path) for path in paths] for paths in values.values()] == [["/a"], ["/a", "/b"]]
    with pytest.raises(ValueError, match="artefacts"):
        Settings(artefacts="")  # pyright: ignore[reportArgumentType]


def test_models_are_listed_only_for_calls() -> None:
    """A list that would be ignored is an error."""
    with pytest.raises(ValueError, match="load_models"):
        Settings(load_models="toy")  # pyright: ignore[reportArgumentType]
    assert Settings(load_models="toy, other", model_control_mode="explicit").load_models == ("toy", "other")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"queue": 1}', "serving.json: queue"),
        ('{"queue_max": 0}', "serving.json: queue_max"),
        ('{"queue_max": "7"}', "serving.json: queue_max"),
        ('{"batch_delay_ms_max": 1001}', "serving.json: batch_delay_ms_max"),
        ('{"durability": "later"}', "serving.json: durability"),
        ('{"idle_timeout_s": NaN}', "serving.json"),
        ("[]", "serving.json"),
        ("\xff", "serving.json"),
    ],
)
def test_an_error_in_an_operators_file_is_named(tmp_path: Path, text: str, field: str) -> None:
    """File and field; a field that is unknown is as wrong as a value that cannot be."""
    path = tmp_path / "serving.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ArtefactError) as caught:
        load_serving_file(path)
    assert field in caught.value.where


def test_an_empty_file_of_an_operator_sets_nothing(tmp_path: Path) -> None:
    """Whole numbers will do for seconds."""
    path = tmp_path / "serving.json"
    path.write_text("{}")
    assert load_serving_file(path) == ServingFile()
    path.write_text('{"idle_timeout_s": 60}')
    assert load_serving_file(path).idle_timeout_s == 60.0
