"""Names are checked once, at the border."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_kernel.errors import BadRequest, NotFound, OvmsError
from ovms_kernel.fetch.names import check_file_path
from ovms_kernel.models.names import parse_model_id, parse_model_ref, staging_key


@pytest.mark.parametrize(
    "name", ["OpenVINO/Qwen3-8B-int4-ov", "single", "通义/千问-7B", "a/b.c+d_e", "x" * 96, "Ünï/cödé", "9/9"]
)
def test_good_names_stay_as_they_are(name):
    assert parse_model_id(name) == name


def test_names_are_composed():
    decomposed = unicodedata.normalize("NFD", "é/ü")
    assert decomposed != "é/ü"
    assert parse_model_id(decomposed) == "é/ü"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/..", "../a", "a/../b", "/a", "a/", "a//b", "a/b/c", "\\a", "a\\b", "C:\\x", "a b", "a'b", 'a"b',
     "a\nb", "a\0b", "x" * 300, ".hidden", "a/.hidden", "-rf", "con", "a/NUL", "aux.txt", "Com1", "lpt9.x", "a.", "a?b",
     "a*b", "a|b", "<a>", "config.json", "CONFIG.JSON", "config.json.damaged-1/x", "a/\u202eb", "a@b", "💥", None, 7],
)  # fmt: skip
def test_bad_names_are_refused_with_one_sentence(name):
    with pytest.raises(BadRequest) as caught:
        parse_model_id(name)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_names_of_ollama_are_told_what_to_look_for():
    with pytest.raises(NotFound, match=r"Ollama.*modelscope\.cn/organization/OpenVINO"):
        parse_model_id("deepseek-r1:7b")


def test_references_name_hub_and_revision():
    ref = parse_model_ref("modelscope:OpenVINO/x@v1.0")
    assert (ref.id, ref.revision, ref.hub) == ("OpenVINO/x", "v1.0", "modelscope")
    assert parse_model_ref("a/b@feature/x").revision == "feature/x"
    for bad in ("a/b@", "a/b@../x", "a/b@x y", "a/b@" + "x" * 200):
        with pytest.raises(BadRequest):
            parse_model_ref(bad)


@given(st.text())
def test_whatever_passes_is_a_safe_path(text):
    try:
        name = parse_model_id(text)
    except OvmsError:
        return
    assert all(part not in ("", ".", "..") and not part.startswith(".") for part in name.split("/"))
    assert "/" not in staging_key(name)
    assert parse_model_id(name) == name


@pytest.mark.parametrize("path", ["a.bin", "unet/openvino_model.xml", "1_Pooling/config.json", "说明.md", "a b.txt"])
def test_good_paths_of_files(path):
    assert check_file_path(path, "x") == path


@pytest.mark.parametrize(
    "path",
    ["", "../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "C:/x", "a/.", "nul", "x/con.txt", "a\n", "a./b", "a" * 2000],  # noqa: E501
)  # fmt: skip
def test_bad_paths_of_files(path):
    with pytest.raises(BadRequest):
        check_file_path(path, "x")


@pytest.mark.parametrize("name", ["x" * 1_000_000, "me/" + "\u00e9" * 500_000, "hf:" + "a/" * 400_000])
def test_a_name_of_a_megabyte_is_refused_in_a_short_sentence(name):
    with pytest.raises(BadRequest) as caught:
        parse_model_ref(name)
    assert len(caught.value.message) < 200
