"""A student in a folder of Hugging Face layout is loaded with the features of the original network.

Either timm loads it, or the code on its model card (the README.md of the folder).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.suite.config import resolve
from kdep_bench.transfer.hf_layout import CONFIG, PREPROCESSOR, WEIGHTS, preprocessor, write_hf
from tests.transfer.conftest import in_subprocess  # noqa: F401  (a fixture)

CARD = "# resnet18, kdep\n\n| student | resnet18 |\n\n## Files\n\nx\n\n## Loading\n\ny\n"
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def write_random_student(student: dict[str, Any], folder: Path) -> np.ndarray:
    """Writes the folder of a random student; returns its last feature map for IMAGES."""
    from kdep_bench.networks.backbone import build_backbone

    torch.manual_seed(0)
    net = build_backbone(student)
    # Other statistics of BatchNorm than the initial ones, as after training.
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand_like(value))
    net.eval()
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "source")
    write_hf(student, folder / "source", CARD, folder)
    with torch.inference_mode():
        return net(IMAGES)[-1].numpy()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_timm_loads_the_folder_and_computes_equal_features(name, tmp_path, in_subprocess):  # noqa: F811
    expected = in_subprocess(write_random_student, resolve("student", name), tmp_path)
    net: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        features = net.forward_features(IMAGES).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())
    classifier = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert classifier(IMAGES).shape == (2, 3)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "local-dir:." in card
    assert "## Files" not in card  # that section lists other files


def loaded_by_the_card(folder: Path) -> np.ndarray:
    """The last feature map, for IMAGES, of the network that the card's code loads."""
    import os

    os.chdir(folder)
    code = Path("README.md").read_text().partition("```python\n")[2].partition("```")[0]
    variables: dict[str, Any] = {}
    exec(code, variables)
    with torch.inference_mode():
        net = variables["net"]
        net.eval()
        return net(IMAGES)[-1].numpy()


def test_the_code_of_the_card_loads_a_network_that_timm_does_not_have(tmp_path, in_subprocess):  # noqa: F811
    expected = in_subprocess(write_random_student, resolve("student", "resnet18_w32"), tmp_path)
    assert "architecture" not in json.loads((tmp_path / CONFIG).read_text())
    np.testing.assert_array_equal(in_subprocess(loaded_by_the_card, tmp_path), expected)


def test_the_preprocessor_normalises_as_the_benchmark_does() -> None:
    config = preprocessor(64)
    pixels = np.array([0.0, 100.0, 255.0])[:, None]
    normalised = (pixels * config["rescale_factor"] - config["image_mean"]) / config["image_std"]
    np.testing.assert_allclose(normalised, (pixels - np.array(MEAN)) / np.array(STD), atol=1e-6)
    assert config["crop_size"] == {"height": 64, "width": 64}


def test_tensors_of_another_network_raise_an_error_and_no_file_is_written(tmp_path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "source")
    with pytest.raises(KdepError, match="are not those of timm's resnet18"):
        write_hf(resolve("student", "resnet18"), tmp_path / "source", CARD, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    assert not (tmp_path / PREPROCESSOR).exists()
    assert load_file(tmp_path / "source")  # unchanged
