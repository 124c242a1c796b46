"""Our own graph drivers keep what authors of others are asked to keep."""

from ovms_graph_embeddings import Embeddings
from ovms_graph_image_generation import ImageGeneration
from ovms_graph_rerank import Rerank
from ovms_graph_speech_to_text import SpeechToText
from ovms_graph_text_generation import TextGeneration
from ovms_graph_text_to_speech import TextToSpeech
from ovms_kernel.drivers import ModelFiles
from ovms_kernel.testing.contract import GraphContract


def of(architecture: str) -> ModelFiles:
    return ModelFiles("model", {"openvino_model.xml": 1}, {"config.json": f'{{"architectures": ["{architecture}"]}}'})


class TestTextGeneration(GraphContract):
    driver, files = TextGeneration, of("Qwen3ForCausalLM")


class TestEmbeddings(GraphContract):
    driver, files = Embeddings, of("BertModel")


class TestRerank(GraphContract):
    driver, files = Rerank, of("BertForSequenceClassification")


class TestImageGeneration(GraphContract):
    driver, files = ImageGeneration, of("UNet2DConditionModel")


class TestSpeechToText(GraphContract):
    driver, files = SpeechToText, of("WhisperForConditionalGeneration")


class TestTextToSpeech(GraphContract):
    driver, files = TextToSpeech, of("SpeechT5ForTextToSpeech")
