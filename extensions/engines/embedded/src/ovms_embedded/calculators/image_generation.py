"""Image generation."""

from ovms_embedded.calculators import Calculator, ModelFiles
from ovms_embedded.protos import ovms_graph_pb2 as pb
from ovms_embedded.rest.images import images

PARTS = {"CLIPTextModel", "UNet2DConditionModel", "AutoencoderKL"}


def detects(files: ModelFiles) -> bool:
    """Tell whether a folder has a diffusion pipeline."""
    if "StableDiffusion" in files.pipeline or "Flux" in files.pipeline:
        return True
    return any(each in PARTS or each.endswith("Transformer2DModel") for each in files.architectures)


CALCULATOR = Calculator(
    name="ImageGenCalculator",
    task="image_generation",
    options=pb.ImageGenCalculatorOptions,
    endpoints={"images/generations": images, "images/edits": images},
    worker="ovms_embedded.worker.images",
    node="ImageGenExecutor",
    detects=detects,
    order=400,
)
