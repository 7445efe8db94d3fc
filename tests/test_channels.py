"""Networks for images of other than three channels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellbench.artifacts.checkpoint import Description, check_segmentation
from cellbench.data.preprocessing import Preprocessing
from cellbench.data.views import as_rgb
from cellbench.models.backbones import factory
from cellbench.models.classifier import CellClassifier
from cellbench.models.config import ModelConfig
from cellbench.utils.errors import UserError

NAMES = [
    *("small_cnn", "se_resnet8", "separable_cnn", "bottleneck_resnet"),
    *("resnet18", "densenet121", "mobilenet_v3_small", "vit_b_16", "convnext_tiny"),
    *("timm/efficientnet_lite0", "timm/vit_tiny_patch16_224", "timm/resnetv2_50"),
]


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_network_takes_any_number_of_channels(name, channels):
    size = (224, 224) if "vit" in name else (64, 64)
    built = factory.build(name, "none", size, channels=channels)
    assert len(built.mean) == len(built.std) == channels
    built.trunk.eval()
    with torch.no_grad():
        one = built.pool(built.trunk(torch.zeros(1, channels, *size)))
        image = torch.zeros(1, channels, *size)
        image[0, -1, 16:48, 16:48] = 3.0  # the last channel is not ignored
        other = built.pool(built.trunk(image))
    assert one.shape == (1, built.width)
    assert not torch.equal(one, other)


def test_pretrained_filters_are_spread_over_the_channels(tmp_path):
    torch.manual_seed(0)
    rgb = factory.build("se_resnet8", "none", (64, 64))
    path = tmp_path / "weights.pt"
    torch.save(rgb.trunk.state_dict(), path)
    five = factory.build("se_resnet8", str(path), (64, 64), channels=5)
    filters = dict(rgb.trunk.named_parameters())
    for name, parameter in five.trunk.named_parameters():
        expected = filters[name]
        if parameter.shape != expected.shape:
            expected = (expected.mean(dim=1, keepdim=True) * 3 / 5).expand(-1, 5, -1, -1)
        assert torch.allclose(parameter, expected)
    assert five.loaded is not None
    assert "each of the 5 channels has the mean of its RGB filters" in five.loaded
    assert five.mean == pytest.approx([sum(rgb.mean) / 3] * 5)
    # A grey image gives the maps that it gives in RGB.
    grey = torch.rand(2, 1, 64, 64)
    rgb.trunk.eval()
    five.trunk.eval()
    with torch.no_grad():
        same = five.trunk(grey.expand(-1, 5, -1, -1))
        assert torch.allclose(same, rgb.trunk(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_random_filters_keep_their_scale_and_differ():
    torch.manual_seed(0)
    layer = next(
        m
        for m in factory.build("resnet18", "none", (64, 64), channels=12).trunk.modules()
        if isinstance(m, torch.nn.Conv2d)
    )
    torch.manual_seed(0)
    rgb = next(
        m
        for m in factory.build("resnet18", "none", (64, 64)).trunk.modules()
        if isinstance(m, torch.nn.Conv2d)
    )
    assert layer.weight.shape[1] == layer.in_channels == 12
    assert float(layer.weight.detach().std() / rgb.weight.detach().std()) == pytest.approx(
        0.5, rel=0.1
    )
    assert not torch.allclose(layer.weight[:, 0], layer.weight[:, 1])


def test_a_network_is_made_again_from_its_arguments():
    config = ModelConfig(backbone="small_cnn")
    model = CellClassifier(("a", "b"), (64, 64), config, channels=4).eval()
    again = CellClassifier.from_arguments(model.arguments).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randint(0, 256, (2, 4, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    earlier = {key: value for key, value in model.arguments.items() if key != "channels"}
    assert CellClassifier.from_arguments(earlier).channels == 3


def test_weights_of_a_run_on_other_channels_are_refused(tmp_path):
    model = CellClassifier(("a", "b"), (64, 64), ModelConfig(backbone="small_cnn"), channels=4)
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    stored = {"cellbench": {"model": model.arguments}, "state_dict": model.state_dict()}
    torch.save(stored, folder / "best.ckpt")
    run = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"is for 4 channels, and the images have 3; .*channels"):
        factory.build("small_cnn", run, (64, 64))
    same = factory.build("small_cnn", run, (64, 64), channels=4)
    for own, other in zip(same.trunk.parameters(), model.backbone.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_checkpoint_of_an_earlier_version_is_of_three_channels():
    model = CellClassifier(("a", "b"), (64, 64), ModelConfig(backbone="small_cnn"))
    prepared = Preprocessing((64, 64), "raw", 0)
    plain = Description("1", model.arguments, prepared, "32", "x", "y", "z", None).as_plain()
    for key in ("fit", "image_format", "mask_format", "cellpose"):
        del plain["preprocessing"][key]
    earlier = {k: v for k, v in model.arguments.items() if k != "channels"}
    read = Description.from_plain(plain | {"model": earlier})
    assert read.model == model.arguments
    assert read.preprocessing == prepared


def test_images_of_any_number_of_channels_are_shown_in_colours():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    assert as_rgb(image) is image
    grey = as_rgb(image[..., :1])
    assert (grey == image[..., :1]).all()
    assert grey.shape == (6, 5, 3)
    five = np.zeros((1, 5, 5), np.uint8)
    five[0, range(5), range(5)] = 255  # one channel alone in each pixel
    assert len({tuple(pixel) for pixel in as_rgb(five)[0]}) == 5


def test_a_run_on_masks_of_another_segmentation_is_refused():
    prepared = Preprocessing((64, 64), "masked", 0, masks="auto")
    now = Description("1", {}, prepared, "32", "x", "y", "z", None, segmentation=prepared.segments)
    check_segmentation(now)
    with pytest.raises(UserError, match=r"masks by another segmentation \(auto 1; here auto 2\)"):
        check_segmentation(replace(now, segmentation=""))  # an earlier version
    check_segmentation(replace(now, segmentation="", preprocessing=replace(prepared, view="raw")))
