"""Write the fixture of MobileSAM's encoder: random weights under their original names, an input and its output.

The authors publish no package. kornia (Apache-2.0) holds an implementation of its own that keeps their names and loads
their checkpoint strictly; it serves as the reference. Run in an environment with kornia 0.9, never in the project's:

    python tests/parity/build_mobile.py tests/sam/fixtures/mobile_encoder.safetensors
"""

import json
import sys
from pathlib import Path

import torch
from kornia.models.common import LayerNorm2d
from kornia.models.tiny_vit import TinyViT
from safetensors.torch import save_file
from torch import Tensor, nn

# Grids of 20, 10, 5 and 5 cells: no window divides its grid, so that the rule for padding is in the fixture.
SIZES = {
    "image_size": 80,
    "embed_dims": [8, 12, 16, 20],
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 4, 5],
    "window_sizes": [7, 3, 4, 3],
}
OUTPUT = 16  # channels of the embedding; kornia's are fixed to 256, which would make the file 2.4 MB


def randomise(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Give a tensor values that leave no part of the network without effect on the output."""
    if name.endswith("running_var"):
        tensor.uniform_(0.5, 1.5, generator=generator)
    elif name.endswith(("bn.weight", "norm.weight", "neck.1.weight", "neck.3.weight")):
        tensor.uniform_(0.7, 1.3, generator=generator)
    elif "attention_biases" in name:
        tensor.normal_(0, 1, generator=generator)
    elif tensor.ndim == 1:
        tensor.normal_(0, 0.2, generator=generator)
    elif tensor.is_floating_point():
        tensor.normal_(0, 1.2 * tensor[0].numel() ** -0.5, generator=generator)


def main(path: Path) -> None:
    """Build, run in double precision and write."""
    sizes = {"img_size" if name == "image_size" else name: value for name, value in SIZES.items()}
    model = TinyViT(mobile_sam=True, num_classes=3, **sizes)
    model.neck = nn.Sequential(
        nn.Conv2d(SIZES["embed_dims"][-1], OUTPUT, 1, bias=False),
        LayerNorm2d(OUTPUT),
        nn.Conv2d(OUTPUT, OUTPUT, 3, padding=1, bias=False),
        LayerNorm2d(OUTPUT),
    )
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, tensor in state.items():
        randomise(name, tensor, generator)
    tensors = {f"image_encoder.{name}": tensor.clone() for name, tensor in state.items()}
    pixels = torch.randn((1, 3, SIZES["image_size"], SIZES["image_size"]), generator=generator)
    with torch.inference_mode():
        output = model.double().eval()(pixels.double()).float()
    tensors |= {"input": pixels, "output": output.contiguous()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"vision_config": json.dumps(SIZES | {"output_channels": OUTPUT})})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
