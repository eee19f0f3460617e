"""A damaged model directory says which file is wrong."""

import json

import pytest

from edge_asr.errors import ModelDamagedError, ModelMismatchError, ModelNotFoundError, UsageError
from edge_asr.model_files import MODELS_VARIABLE, ModelFiles, find_model, fingerprint, installed_models, seal
from edge_asr.tokens import TokenTable


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "models" / "parrot"
    directory.mkdir(parents=True)
    TokenTable.phones().save(directory / "tokens.txt")
    (directory / "encoder.onnx").write_bytes(b"weights" * 100)
    (directory / "encoder.int8.onnx").write_bytes(b"small" * 100)
    (directory / "README.md").write_text("a card")
    graph = tmp_path / "models" / "graphs" / "phrases"
    graph.mkdir(parents=True)
    (graph / "graph.fst").write_bytes(b"arcs")
    (graph / "config.json").write_text("{}")
    (directory / "config.json").write_text(json.dumps({"graph": "../graphs/phrases", "decoder": {"beam": 12}}))
    seal(graph)
    seal(directory)
    return directory


def test_a_whole_model_opens_by_path(model):
    files = ModelFiles.open(model)
    assert files.encoder("int8").name == "encoder.int8.onnx"
    assert files.encoder("fp32").name == "encoder.onnx"
    assert files.graph.resolve() == (model / "../graphs/phrases").resolve()
    assert files.config["decoder"] == {"beam": 12}


def test_a_model_opens_by_name_from_the_folder_in_the_environment(model, monkeypatch):
    monkeypatch.setenv(MODELS_VARIABLE, str(model.parent))
    assert find_model("parrot") == model
    assert installed_models()["parrot"] == model


def test_an_unknown_name_lists_what_there_is(model, monkeypatch):
    monkeypatch.setenv(MODELS_VARIABLE, str(model.parent))
    with pytest.raises(ModelNotFoundError, match=r"'budgie'.*parrot"):
        find_model("budgie")


def test_sealing_twice_changes_nothing(model):
    before = (model / "config.json").read_bytes()
    seal(model)
    assert (model / "config.json").read_bytes() == before
    assert set(json.loads(before)["files"]) == {"encoder.onnx", "encoder.int8.onnx", "tokens.txt"}


def read_everything(model):
    files = ModelFiles.open(model)
    return files.encoder("int8"), files.graph


@pytest.mark.parametrize("name", ["encoder.int8.onnx", "tokens.txt", "../graphs/phrases/graph.fst"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_the_file_that_is_wrong_is_named(model, name, damage):
    path = model / name
    content = bytearray(path.read_bytes())
    content[1] ^= 4
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    expected = ModelNotFoundError if damage == "remove" else ModelDamagedError
    with pytest.raises(expected, match=path.name):
        read_everything(model)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff\xfe"])
def test_a_configuration_that_is_no_object_is_named(model, content):
    (model / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelDamagedError, match=r"config\.json"):
        ModelFiles.open(model)


def test_a_folder_without_a_configuration_is_no_model(model):
    (model / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"config\.json: is missing"):
        ModelFiles.open(model)


def test_a_missing_graph_folder_is_named(model):
    (model / "config.json").write_text(json.dumps({"graph": "../graphs/gone"}))
    with pytest.raises(ModelNotFoundError, match="gone"):
        assert ModelFiles.open(model).graph


def test_a_model_without_a_graph_has_none(model):
    (model / "config.json").write_text("{}")
    assert ModelFiles.open(model).graph is None


def test_tokens_of_another_export_are_refused(model):
    with pytest.raises(ModelMismatchError, match=r"other\.onnx"):
        ModelFiles.open(model).check_tokens(model / "other.onnx", "0" * 64)


def test_an_unknown_precision_is_refused(model):
    with pytest.raises(UsageError, match="int4"):
        ModelFiles.open(model).encoder("int4")


def test_the_fingerprint_is_size_and_crc32(tmp_path):
    (tmp_path / "check").write_bytes(b"123456789")
    assert fingerprint(tmp_path / "check") == {"bytes": 9, "crc32": "cbf43926"}
