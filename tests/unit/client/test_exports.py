from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import statestream
from statestream import errors
from statestream._inference import AsyncInferencePart, InferencePart
from statestream._sentiment import AsyncSentimentPart, SentimentPart
from statestream._sequences import AsyncSequences, Sequences

PUBLIC = {
    "AsyncClient",
    "AsyncInferenceStream",
    "AsyncSentimentStream",
    "Client",
    "Durability",
    "ExportError",
    "Exported",
    "Inference",
    "InferenceStream",
    "InferenceUpdate",
    "Label",
    "ModelOptions",
    "ModelVersion",
    "ReplayBounds",
    "ReplyHeader",
    "ReplyWarning",
    "RetryPolicy",
    "Sentiment",
    "SentimentStream",
    "SentimentUpdate",
    "Sequence",
    "SequenceStatus",
    "StatestreamError",
    "StreamStats",
    "Timing",
    "adopt",
    "errors",
    "export",
}


def test_public_names_are_these() -> None:
    """Adding or removing a public name is done on purpose: here too."""
    assert set(statestream.__all__) == PUBLIC
    assert all(hasattr(statestream, name) for name in PUBLIC)


def test_every_other_module_is_private() -> None:
    """What is not exported stands in modules with an underscore, so that it can change."""
    modules = {name for name, value in vars(statestream).items() if inspect.ismodule(value)}
    generated = {"common", "inference", "sentiment"}
    assert {name for name in modules - generated if not name.startswith("_")} == {"errors"}


def test_every_error_class_is_exported() -> None:
    """A caller can name every class that may be raised."""
    classes = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert set(errors.__all__) == classes


def test_public_members_are_documented() -> None:
    """Every public class, and every public method of it, says what it does."""
    for name in statestream.__all__:
        member = getattr(statestream, name)
        assert inspect.getdoc(member), name
        for attribute in dir(member):
            # What comes from elsewhere, such as from Enum and Exception, is documented there.
            value = inspect.getattr_static(member, attribute)
            if not attribute.startswith("_") and str(getattr(value, "__module__", "")).startswith("statestream"):
                assert inspect.getdoc(value), f"{name}.{attribute}"


def test_generated_folders_are_packages() -> None:
    """Tools that draw the imports, import-linter among them, see only folders that are packages."""
    root = Path(statestream.__path__[0])
    folders = {parent for path in root.rglob("*_pb2.py") for parent in path.parents if parent.is_relative_to(root)}
    assert len(folders) > 4
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_every_task_has_its_part_on_both_clients() -> None:
    """What has stubs can be called: `client.<task>`, blocking and for asyncio, with the same calls."""
    root = Path(statestream.__path__[0])
    tasks = {path.parts[-3] for path in root.glob("*/v1/*_service_pb2.py")} - {"common"}
    with statestream.Client("127.0.0.1:1") as blocking:
        for task in {*tasks, "sequences"}:
            parts = [getattr(client, task) for client in (blocking, statestream.AsyncClient("127.0.0.1:1"))]
            one, other = ({name for name in dir(part) if not name.startswith("_")} for part in parts)
            assert one == other != set()


def test_streams_and_clients_are_alike_blocking_and_for_asyncio() -> None:
    """What one of them has the other has, by the same name and with the same arguments."""
    for blocking, other in (
        (statestream.Client, statestream.AsyncClient),
        (statestream.SentimentStream, statestream.AsyncSentimentStream),
        (SentimentPart, AsyncSentimentPart),
        (statestream.InferenceStream, statestream.AsyncInferenceStream),
        (InferencePart, AsyncInferencePart),
        (Sequences, AsyncSequences),
    ):
        names = {name for name in dir(other) if not name.startswith("_")}
        assert {name for name in dir(blocking) if not name.startswith("_")} == names
        for name in names:
            one, two = getattr(blocking, name), getattr(other, name)
            if callable(one):
                assert list(inspect.signature(one).parameters) == list(inspect.signature(two).parameters), name


def test_export_has_the_signature_of_the_exporter() -> None:
    """The client writes it out without importing it: names and defaults are those of the exporter."""
    pytest.importorskip("torch")
    adopt = importlib.import_module("models.common.export.adopt").adopt
    export = importlib.import_module("models.common.export.network").export
    facts = importlib.import_module("models.common.export.facts").FactOptions
    given = set(statestream.ModelOptions.__annotations__)
    for ours, theirs in ((statestream.export, export), (statestream.adopt, adopt)):
        mine, other = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        assert {*mine, *given} - {"options"} == {*other, *facts.__annotations__} - {"options"}
        for name in set(mine) & set(other):
            assert (mine[name].kind, mine[name].default) == (other[name].kind, other[name].default), name


def test_client_imports_nothing_of_the_server() -> None:
    """A client needs neither the services nor the models, nor numpy: they need not be installed."""
    code = (
        "import sys, statestream\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'services', 'models', 'numpy', 'pydantic', 'onnxruntime', 'click'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
