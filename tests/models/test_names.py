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
    check_file_path(path, "x")


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


@pytest.mark.parametrize(
    ("page", "meant"),
    [
        ("https://modelscope.cn/models/OpenVINO/Qwen3-8B-int4-ov", ("OpenVINO/Qwen3-8B-int4-ov", "", "modelscope")),
        ("https://www.modelscope.cn/models/O/M/summary", ("O/M", "", "modelscope")),
        ("www.modelscope.cn/models/O/M/files?version=1#x", ("O/M", "", "modelscope")),
        ("https://huggingface.co/O/M", ("O/M", "", "huggingface")),
        ("http://HuggingFace.co/O/M/", ("O/M", "", "huggingface")),
        ("https://huggingface.co/O/M/tree/v1.0", ("O/M", "v1.0", "huggingface")),
        ("https://huggingface.co/O/M/blob/main/README.md", ("O/M", "main", "huggingface")),
        ("hf.co/O/M@v2", ("O/M", "v2", "huggingface")),
    ],
)
def test_the_address_of_a_page_names_its_model(page, meant):
    ref = parse_model_ref(page)
    assert (ref.id, ref.revision, ref.hub) == meant


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("https://huggingface.co/datasets/O/M", BadRequest, "not the page of a model"),
        ("https://modelscope.cn/organization/OpenVINO", BadRequest, "not the page of a model"),
        ("https://huggingface.co/O", BadRequest, "not the page of a model"),
        ("https://example.com/O/M", BadRequest, "not the page of a model on ModelScope or Hugging Face"),
        ("https://", BadRequest, "not the page of a model"),
        ("https://ollama.com/library/qwen3", NotFound, "a model of Ollama's"),
        ("hf.co/O/M:Q4_K_M", NotFound, "O/M@Q4_K_M if Q4_K_M is a revision"),
        ("owner/name:tag", NotFound, "owner/name@tag if tag is a revision"),
        ("https://modelscope.cn/models/../x", BadRequest, "must not begin with a dot"),
    ],
)
def test_what_is_no_model_is_answered_with_what_to_give(text, error, told):
    with pytest.raises(error, match=told):
        parse_model_ref(text)
