"""A small real network that finds bright spots, and its export, made once."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.deploy.export import export_student
from fewlabel.students.detector.network import Detector

MULTIPLE = 8


class SpotNet(nn.Module):
    """Mean of 3 x 3 pixels less the mean of 15 x 15, through a strided branch, so that it must pad as students do."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(1, 1, 3, bias=False)
        self.far = nn.Conv2d(1, 1, MULTIPLE, stride=MULTIPLE, bias=False)
        self.head = nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            self.near.weight.fill_(1 / 9)
            self.far.weight.fill_(1 / MULTIPLE**2)
            self.head.weight.copy_(torch.tensor([4.0, -4.0]).view(1, 2, 1, 1))
            self.head.bias.fill_(-6.0)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        near = self.near(F.pad(padded, (1, 1, 1, 1), mode="replicate"))
        far = F.interpolate(self.far(padded), size=near.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat([near, far], dim=1))[..., :height, :width]


FRAME, QUERIES = 48, 6


class SpotDetector(Detector):
    """A detector without learning: 3 x 3 boxes at the brightest peaks of the same difference of means."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.frame = FRAME
        self.head = nn.Linear(1, 1)
        with torch.no_grad():
            self.head.weight.fill_(4.0)
            self.head.bias.fill_(-6.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        near, far = (F.avg_pool2d(F.pad(images, [k // 2] * 4, mode="replicate"), k, 1) for k in (3, 15))
        height = near - far
        peaks = torch.where(height >= F.max_pool2d(height, 5, 1, 2), height, -10.0)
        values, places = peaks.flatten(1).topk(QUERIES)
        centres = torch.stack([places % FRAME, places // FRAME], -1).float() + 0.5
        return torch.cat([centres - 1.5, centres + 1.5], -1), self.head(values[..., None])[..., 0]


def scene(height: int, width: int, spots: list[tuple[int, int]], seed: int = 0) -> np.ndarray:
    """A noisy sloped background in 0..1 with a bright 3 x 3 spot at each (row, column), float64 (H, W)."""
    rng = np.random.default_rng(seed)
    picture = 0.2 + 0.1 * np.linspace(0, 1, width)[None] + 0.01 * rng.standard_normal((height, width))
    for row, column in spots:
        picture[row - 1 : row + 2, column - 1 : column + 2] += 0.6
    return picture.clip(0, 1)


@pytest.fixture(scope="session")
def spot_net() -> SpotNet:
    return SpotNet().eval()


@pytest.fixture(scope="session")
def spot_onnx(spot_net: SpotNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "spot.onnx"
    return export_student(spot_net, path, name="spot", metadata={"threshold": 0.6, "run": "test"})


@pytest.fixture(scope="session")
def spot_detector() -> SpotDetector:
    return SpotDetector().eval()


@pytest.fixture(scope="session")
def boxes_onnx(spot_detector: SpotDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "boxes.onnx"
    metadata = {"student": "dfine", "threshold": 0.6, "run": "test"}
    return export_student(spot_detector, path, name="spots", metadata=metadata)


@pytest.fixture(scope="session")
def make_scene():
    return scene
