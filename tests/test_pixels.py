"""Pixel formats: what a file shows reaches the network, or is refused in one line."""

import io
import re
import struct
import zlib
from dataclasses import asdict, replace

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
import torch

from cellbench.__main__ import main
from cellbench.artifacts.checkpoint import Description, read_checkpoint
from cellbench.artifacts.folder import RunFolder
from cellbench.audit.audit import audit
from cellbench.cli.options.stored import read_data
from cellbench.data import files
from cellbench.data.augment import Augmentation
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.image_format import ImageFormat, Intensity
from cellbench.data.preprocessing import Preprocessing, resize
from cellbench.data.smote import SmoteConfig
from cellbench.data.splits import SplitConfig
from cellbench.data.stretching import describe_stretching
from cellbench.data.unlabelled import UnlabelledImages
from cellbench.data.views import CYTOPLASM
from cellbench.inference.onnx_metadata import preprocessing_steps
from cellbench.training.compatibility import changed_preprocessing
from cellbench.utils.errors import UserError
from tests.conftest import SHARED

H, W = 30, 42
Y, X = np.mgrid[:H, :W]
RGB = np.dstack([X * 5, Y * 8, (X + Y) * 3]).astype(np.uint8)
GREY = RGB[..., 2]
ALPHA = np.where(X > 20, 255, 0).astype(np.uint8)
SOFT = (X * 6).astype(np.uint8)
WIDE = GREY.astype(np.uint16) * 257
PLANES = np.stack([WIDE // 4, WIDE // 2, WIDE, WIDE[::-1], WIDE[:, ::-1]])  # (5, H, W)
FULL = Intensity(0, 65535)


def pillow(array, **options):
    return lambda path: PIL.Image.fromarray(array).save(path, **options)


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


def composed(colours, alpha, fill=0):
    share = alpha[..., None] / 255
    return np.rint(share * colours + (1 - share) * fill).astype(np.uint8)


def three(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def turned(orientation, suffix):
    def save(path):
        exif = PIL.Image.Exif()
        exif[274] = orientation
        options = {"tiffinfo": {274: orientation}} if suffix == ".tif" else {"exif": exif}
        PIL.Image.fromarray(RGB).save(path, **options)

    return save


def gamma(path):
    info = PIL.PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    PIL.Image.fromarray(RGB).save(path, pnginfo=info)


def palette(path, **options):
    PIL.Image.fromarray(RGB).quantize(32).save(path, **options)


def converted(mode, suffix, **options):
    """Saves the image in another mode of Pillow's."""
    return lambda path: PIL.Image.fromarray(RGB).convert(mode).save(path, **options)


def as_pillow(path, orientation=1):
    with PIL.Image.open(path) as image:
        return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))


PICTURES = {
    "grey.bmp": (pillow(GREY), three(GREY), 0),
    "rgb.png": (pillow(RGB), RGB, 0),
    "palette.png": (palette, None, 0),
    "palette.tif": (palette, None, 0),
    "bit.png": (converted("1", ".png"), None, 0),
    "group4.tif": (converted("1", ".tif", compression="group4"), None, 0),
    "cmyk.jpg": (converted("CMYK", ".jpg", quality=95), None, 1),
    "cmyk.tif": (converted("CMYK", ".tif"), None, 1),
    "ycbcr.tif": (converted("YCbCr", ".tif"), None, 1),
    "grey.jpg": (converted("L", ".jpg", quality=95), None, 0),
    "gamma.png": (gamma, RGB, 0),
    "lzw.tif": (pillow(RGB, compression="tiff_lzw"), RGB, 0),
    "jpeg.tif": (pillow(RGB, compression="jpeg", quality=95), None, 0),
    "white.tif": (tiff(255 - GREY, photometric="miniswhite"), three(GREY), 0),
    "planar.tif": (
        tiff(RGB.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        RGB,
        0,
    ),
    "tiled.tif": (tiff(RGB, photometric="rgb", tile=(16, 16), compression="zlib"), RGB, 0),
    "big.tif": (tiff(RGB, photometric="rgb", bigtiff=True, byteorder=">"), RGB, 0),
    "zstd.tif": (tiff(RGB, photometric="rgb", compression="zstd"), RGB, 0),
    "jpeg2000.tif": (tiff(RGB, photometric="rgb", compression="jpeg2000"), RGB, 0),
    "webp.tif": (
        tiff(RGB, photometric="rgb", compression="webp", compressionargs={"lossless": True}),
        RGB,
        0,
    ),
    "rgb.ome.tif": (tiff(RGB, photometric="rgb", metadata={"axes": "YXS"}), RGB, 0),
    "alpha.png": (pillow(np.dstack([RGB, ALPHA])), composed(RGB, ALPHA), 0),
    "soft.png": (pillow(np.dstack([RGB, SOFT])), composed(RGB, SOFT), 1),
    "la.png": (pillow(np.dstack([GREY, ALPHA])), composed(three(GREY), ALPHA), 0),
    "alpha.webp": (
        pillow(np.dstack([RGB, ALPHA]), lossless=True, exact=True),
        composed(RGB, ALPHA),
        0,
    ),
    "alpha.tif": (pillow(np.dstack([RGB, SOFT])), composed(RGB, SOFT), 1),
    "la.tif": (pillow(np.dstack([GREY, SOFT])), composed(three(GREY), SOFT), 1),
    "associated.tif": (
        tiff(np.dstack([composed(RGB, ALPHA), ALPHA]), photometric="rgb", extrasamples=[1]),
        composed(RGB, ALPHA),
        1,
    ),
    "key.png": (pillow(RGB, transparency=(0, 0, 0)), RGB, 0),
    **{
        f"turned{i}{suffix}": (turned(i, suffix), None, 0)
        for i in range(2, 9)
        for suffix in (".png", ".tif", ".webp")
    },
}
"""Writer, expected image (None for Pillow's) and largest difference, by the file's name."""


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_read_as_it_is_shown(tmp_path, name):
    write, expected, tolerance = PICTURES[name]
    path = tmp_path / name
    write(path)
    image = files.read_image(path)
    expected = as_pillow(path) if expected is None else expected
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= tolerance
    assert files.read_size(path) == image.shape[:2]


def test_what_is_under_transparent_pixels_is_never_seen(tmp_path):
    rng, seen = np.random.default_rng(0), []
    for i in range(2):
        junk = np.where(ALPHA[..., None] > 0, RGB, rng.integers(0, 255, RGB.shape, np.uint8))
        pillow(np.dstack([junk, ALPHA]))(tmp_path / f"{i}.png")
        seen.append(files.read_image(tmp_path / f"{i}.png", image_format=ImageFormat(fill=200)))
    assert np.array_equal(*seen)
    assert (seen[0][ALPHA == 0] == 200).all()
    assert np.array_equal(seen[0][ALPHA > 0], RGB[ALPHA > 0])


PERCENTILES = ImageFormat(intensity=Intensity("percentile 10", "percentile 90"))


def test_percentiles_are_those_of_opaque_pixels(tmp_path):
    path = tmp_path / "a.tif"
    junk = np.where(ALPHA[..., None] > 0, three(WIDE), 65535)
    tiff(np.dstack([junk, ALPHA.astype(np.uint16) * 257]), photometric="rgb", extrasamples=[2])(
        path
    )
    image = files.read_image(path, image_format=PERCENTILES)
    low, high = np.percentile(WIDE[ALPHA > 0], (10, 90))
    expected = np.rint(255 * np.clip((WIDE - low) / (high - low), 0, 1))
    assert np.abs(image[..., 1].astype(int) - np.where(ALPHA > 0, expected, 0)).max() <= 1


def animation(path):
    frames = {"save_all": True, "append_images": [PIL.Image.fromarray(255 - RGB)]}
    PIL.Image.fromarray(RGB).save(path, **frames)


def bomb(path):
    data = zlib.compress(bytes(10**8), 9)
    tags = [(256, 64), (257, 64), (258, 16), (259, 8), (262, 1), (277, 1)]
    tags += [(322, 60000), (323, 60000), (324, 8 + 2 + 12 * 10 + 4), (325, len(data))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", 10) + table + bytes(4) + data)


def ome(text):
    return tiff(WIDE, metadata=None, description=f'<?xml version="1.0"?>{text}')


def cut(path):
    tiff(WIDE, compression="lzw")(path)
    path.write_bytes(path.read_bytes()[:-200])


NAMED = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "RFP", "Cy5", "TL"]}}

REFUSED = {
    "wide.tif": (tiff(WIDE), "has 16 bits per channel; say how they become 8 bits with data.int"),
    "wide.png": (lambda p: cv2.imwrite(str(p), WIDE), "has 16 bits per channel; say how"),
    "float.tif": (tiff(GREY / np.float32(255)), "has float32 values; say how they become 8 bits"),
    "signed.tif": (tiff(GREY.astype(np.int8)), "has int8 values; say how"),
    "two.tif": (
        tiff(np.dstack([GREY, GREY]), photometric="minisblack", planarconfig="contig"),
        r"has 2 channels \(0, 1\); choose among them",
    ),
    "five.tif": (
        tiff(PLANES.transpose(1, 2, 0).copy(), photometric="minisblack", planarconfig="contig"),
        r"has 5 channels \(0, 1, 2, 3, 4\); choose among them by name or number with data.channels",
    ),
    "named.ome.tif": (
        tiff(PLANES, metadata=NAMED, ome=True),
        r"has 5 channels \(0 DAPI, 1 GFP, 2 RFP, 3 Cy5, 4 TL\); choose",
    ),
    "rgbx.tif": (
        tiff(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=[0]),
        r"has 4 channels \(0 R, 1 G, 2 B, 3\); choose",
    ),
    "pages.tif": (
        tiff(np.stack([GREY] * 3), photometric="minisblack"),
        "has 3 pages; give one image per file, or take pages as channels with data.channels",
    ),
    "colour_pages.tif": (tiff(np.stack([RGB] * 2), photometric="rgb"), "2 pages of 3 channels"),
    "z.ome.tif": (
        tiff(PLANES, metadata={"axes": "ZYX"}, ome=True),
        "is a stack of 5 z-slices; give one",
    ),
    "t.tif": (
        tiff(PLANES, imagej=True, metadata={"axes": "TYX"}),
        "is a stack of 5 time points; give one image per file",
    ),
    "sizes.tif": (
        lambda p: [tifffile.imwrite(p, WIDE[:, :i], append=i > 20) for i in (20, 30)],
        "has 2 images of different sizes or kinds; give one per file",
    ),
    "lab.tif": (converted("LAB", ".tif"), "is a TIFF of the kind CIELAB .* convert it to grey or"),
    "animation.png": (animation, "is an animation; give one image per file"),
    "animation.webp": (animation, "is an animation; give"),
    "clear.png": (pillow(np.dstack([RGB, 0 * GREY])), "is fully transparent; save it without"),
    "wide_alpha.png": (
        lambda p: cv2.imwrite(str(p), np.dstack([WIDE] * 4)),
        "has 16 bits per channel and transparency; save it without an alpha channel",
    ),
    "cut.tif": (cut, "the file is damaged .*; restore or remove it"),
    "text.tif": (lambda p: p.write_text("II*\0 no image"), "the file is damaged"),
    "bomb.tif": (bomb, "it has 60,000 x 60,000 pixels, more than max_pixels"),
    "entity.ome.tif": (
        ome('<!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;">]><OME>&c;</OME>'),
        "its OME-XML declares entities",
    ),
    "broken.ome.tif": (ome("<OME><Image></OME>"), "its OME-XML is not valid"),
    "images.ome.tif": (ome("<OME><Image/><Image/></OME>"), "holds 2 images of OME"),
    "spread.ome.tif": (
        ome(
            '<OME UUID="urn:a"><Image><Pixels SizeC="1"><TiffData><UUID FileName="/etc/passwd">'
            "urn:b</UUID></TiffData></Pixels></Image></OME>"
        ),
        "its channels are spread over several files",
    ),
    "long.ome.tif": (ome(f"<OME>{'x' * 2**22}</OME>"), "its OME-XML has 4,194,"),
    "more.ome.tif": (
        ome('<OME><Image><Pixels SizeC="3"/></Image></OME>'),
        "its OME-XML describes 3 channels, and it has 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(tmp_path, name):
    write, message = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        files.read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_too_many_channels_for_the_limit_are_refused(tmp_path):
    path = tmp_path / "many.tif"
    tiff(np.zeros((20, H, W), np.uint8), metadata={"axes": "CYX"}, compression="zlib")(path)
    with pytest.raises(UserError, match="its 20 channels unpack to 25,200 values, more than max_p"):
        files.read_image(path, H * W, ImageFormat(channels=(0, 1)))
    every = ImageFormat(channels=tuple(range(20)))
    assert files.read_image(path, H * W, every).shape == (H, W, 20)


STACKS = {
    "ome": tiff(PLANES, metadata=NAMED, ome=True),
    "imagej": tiff(PLANES, imagej=True, metadata={"axes": "CYX", "Labels": list("abcde")}),
    "axes": tiff(PLANES, metadata={"axes": "CYX"}),
    "pages": tiff(PLANES, metadata=None, photometric="minisblack"),
    "samples": tiff(
        PLANES.transpose(1, 2, 0).copy(), photometric="minisblack", planarconfig="contig"
    ),
    "planar": tiff(PLANES, photometric="minisblack", planarconfig="separate"),
    "first page alone": tiff(PLANES, metadata={"axes": "CYX"}, truncate=True),
    "lzw": tiff(PLANES, compression="lzw", predictor=True),
}


@pytest.mark.parametrize("kind", STACKS)
def test_channels_are_chosen_and_ordered(tmp_path, kind):
    path = tmp_path / "a.tif"
    STACKS[kind](path)
    for chosen in ((3, 0), (4,), (0, 1, 2, 3, 4, 4)):
        image = files.read_image(path, image_format=ImageFormat(chosen, FULL))
        expected = np.rint(PLANES[list(chosen)].transpose(1, 2, 0) / 257)
        assert np.abs(image - expected).max() <= 0.5
        assert image.shape == (H, W, len(chosen))
    with pytest.raises(UserError, match=r"a\.tif has no channel 5; it has 0"):
        files.read_image(path, image_format=ImageFormat((5,), FULL))


def test_channels_are_chosen_by_the_names_in_the_file(tmp_path):
    STACKS["ome"](tmp_path / "a.ome.tif")
    image = files.read_image(tmp_path / "a.ome.tif", image_format=ImageFormat(("RFP", 0), FULL))
    assert np.abs(image - np.rint(PLANES[[2, 0]].transpose(1, 2, 0) / 257)).max() <= 0.5
    with pytest.raises(UserError, match=r"data.channels: .* has no channel 'dapi'; it has 0 DAPI"):
        files.read_image(tmp_path / "a.ome.tif", image_format=ImageFormat(("dapi",), FULL))
    STACKS["imagej"](tmp_path / "b.tif")
    image = files.read_image(tmp_path / "b.tif", image_format=ImageFormat(("d",), FULL))
    assert np.abs(image[..., 0] - np.rint(PLANES[3] / 257)).max() <= 0.5
    twice = {"axes": "CYX", "Channel": {"Name": ["TL", "TL"]}}
    tiff(PLANES[:2], metadata=twice, ome=True)(tmp_path / "c.ome.tif")
    with pytest.raises(UserError, match="has 2 channels 'TL'"):
        files.read_image(tmp_path / "c.ome.tif", image_format=ImageFormat(("TL",), FULL))


def test_channels_of_a_picture_are_its_colours(tmp_path):
    pillow(RGB)(tmp_path / "a.png")
    pillow(GREY)(tmp_path / "b.png")
    image = files.read_image(tmp_path / "a.png", image_format=ImageFormat(("B", 0)))
    assert np.array_equal(image, RGB[..., [2, 0]])
    image = files.read_image(tmp_path / "b.png", image_format=ImageFormat((0,)))
    assert np.array_equal(image, GREY[..., None])
    with pytest.raises(UserError, match=r"b\.png has no channel 1; it has 0"):
        files.read_image(tmp_path / "b.png", image_format=ImageFormat((1,)))


def test_the_pages_of_an_ome_tiff_are_the_channels_that_its_xml_says(tmp_path):
    blocks = "".join(f'<TiffData FirstC="{c}" IFD="{2 - c}"/>' for c in range(3))
    names = "".join(f'<Channel Name="{name}"/>' for name in "abc")
    text = f'<OME><Image><Pixels SizeC="3" SizeZ="1">{names}{blocks}</Pixels></Image></OME>'
    options = {"metadata": None, "description": text, "photometric": "minisblack"}
    tiff(PLANES[:3], **options)(tmp_path / "a.tif")
    image = files.read_image(tmp_path / "a.tif", image_format=ImageFormat(("a", "c"), FULL))
    assert np.abs(image - np.rint(PLANES[[2, 0]].transpose(1, 2, 0) / 257)).max() <= 0.5


@pytest.mark.parametrize("kind", ["u2", "i2", "u4", "f2", "f4", "f8"])
def test_intensities_are_scaled_between_the_limits(tmp_path, kind):
    stored = GREY.astype(kind)
    tiff(stored)(tmp_path / "a.tif")
    image = files.read_image(tmp_path / "a.tif", image_format=ImageFormat(None, Intensity(20, 120)))
    expected = np.rint(255 * np.clip((GREY.astype(float) - 20) / 100, 0, 1))
    assert np.abs(image[..., 0] - expected).max() <= (1 if kind == "f2" else 0)
    image = files.read_image(tmp_path / "a.tif", image_format=PERCENTILES)
    low, high = np.percentile(GREY, (10, 90))
    expected = np.rint(255 * np.clip((GREY - low) / (high - low), 0, 1))
    assert np.abs(image[..., 0] - expected).max() <= 1


def test_each_channel_of_each_image_has_percentiles_of_its_own(tmp_path):
    tiff(PLANES, metadata={"axes": "CYX"})(tmp_path / "a.tif")
    image = files.read_image(tmp_path / "a.tif", image_format=replace(PERCENTILES, channels=(0, 2)))
    assert np.abs(image[..., 0].astype(int) - image[..., 1]).max() <= 2  # a quarter of the light


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path, value):
    stored = GREY / np.float32(255)
    stored[3, 4:6] = value
    tiff(stored)(tmp_path / "a.tif")
    measured = replace(PERCENTILES, limits=((0, 1),) * 3)
    for image_format in (PERCENTILES, measured, ImageFormat(intensity=Intensity(0, 1))):
        with pytest.raises(UserError, match=r"a\.tif has 2 pixels that are no finite number"):
            files.read_image(tmp_path / "a.tif", image_format=image_format)


def test_a_blank_channel_is_black_and_equal_limits_are_a_step(tmp_path):
    tiff(np.full((H, W), 500, np.uint16))(tmp_path / "a.tif")
    assert (files.read_image(tmp_path / "a.tif", image_format=PERCENTILES) == 0).all()
    step = ImageFormat(None, Intensity("percentile 1", "percentile 99"), limits=((7, 7),) * 3)
    assert (files.read_image(tmp_path / "a.tif", image_format=step) == 255).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("intensity={low: 5, high: 5}", r"data.intensity: low \(5.*\) must be less than high \(5"),
        ("intensity={low: percentile 99, high: percentile 1}", "must be less than high"),
        ("intensity={low: percentil 1, high: 9}", "data.intensity.low: expected a number, or text"),
        ("intensity={low: percentile 101, high: 900}", r"\(0 to 100\); got 'percentile 101'"),
        ("intensity={low: 1}", "data.intensity: missing high"),
        ("intensity={low: 1, high: 2, per: folder}", "data.intensity.per: expected image, dataset"),
        ("channels=[]", "data.channels: 0 channels; expected 1 to 512"),
        ("channels=[-1]", "data.channels: -1 is less than 0"),
        ("channels=[0.5]", "data.channels"),
        ("fit=squeeze", "data.fit: expected stretch, pad, crop; got 'squeeze'"),
    ],
)
def test_a_wrong_format_is_refused(fails, folder_root, option, message):
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}", f"--data.{option}")
    assert re.search(message, line)


def test_a_dataset_that_draws_its_images_takes_no_format():
    with pytest.raises(UserError, match=r"data\.channels: SyntheticDataModule makes RGB images"):
        SyntheticDataModule(channels=(0,))
    with pytest.raises(UserError, match=r"data\.intensity: SyntheticDataModule makes RGB images"):
        SyntheticDataModule(intensity=FULL)


# From the files to batches.


def draw_stack(rng, label):
    """A cell in five channels of 12 bits, (5, 40, 40), and its mask."""
    y, x = np.mgrid[:40, :40] - 20
    mask = np.where(y**2 + x**2 < 150, 255, 0).astype(np.uint8)
    planes = rng.integers(100, 300, (5, 40, 40)) + 300 * np.arange(5)[:, None, None]
    planes[label, mask > 0] += 2000
    return planes.astype(np.uint16), mask


@pytest.fixture
def stacks(tmp_path):
    """Class folders of five-channel OME-TIFF, with masks."""
    rng, root = np.random.default_rng(0), tmp_path / "stacks"
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        (root / "masks" / name).mkdir(parents=True)
        for i in range(20):
            planes, mask = draw_stack(rng, label)
            tiff(planes, metadata=NAMED, ome=True)(root / name / f"{i}.tif")
            PIL.Image.fromarray(mask).save(root / "masks" / name / f"{i}.png")
    return root


TWELVE = Intensity(0, 4095)
CHOSEN = ("RFP", 0, "TL", 1, 3)


def stack_module(root, tmp_path, **options):
    given = {"channels": CHOSEN, "intensity": TWELVE, "image_size": 32}
    given["cache"] = CacheConfig(64, tmp_path / "cache")
    return FolderDataModule(root=root, **(given | options))


@pytest.mark.parametrize("memory", [64, 0])
@pytest.mark.parametrize("augment", ["none", "geometric"])
def test_five_channels_reach_the_network(stacks, tmp_path, memory, augment):
    options = {"view": "masked", "fill": 9, "augment": augment, "batch_size": 8}
    data = stack_module(stacks, tmp_path, cache=CacheConfig(memory, tmp_path / "cache"), **options)
    data.setup("fit")
    assert data.n_channels == data.preprocessing.n_channels == 5
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape[1:] == (5, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    sample = data.table.samples[3]
    planes = tifffile.imread(sample.image)[[2, 0, 4, 1, 3]].transpose(1, 2, 0)
    exact = np.rint(planes / 4095 * 255).astype(np.uint8)
    stored, mask = data.images.pixels.read(3)
    for channel in range(5):
        assert np.array_equal(stored[..., channel], resize(exact[..., channel], (32, 32)))
    assert (mask == CYTOPLASM).sum() > 100
    assert np.array_equal(data.examples("test", 1).images.shape, (1, 5, 32, 32))


def test_channels_are_warped_alike_and_with_their_mask():
    rng = np.random.default_rng(0)
    image = np.repeat(rng.integers(0, 255, (32, 32, 1), np.uint8), 9, axis=2)
    mask = np.where(image[..., 0] > 127, 2, 0).astype(np.uint8)
    augment = Augmentation("geometric", (32, 32), 9, rgb=False)
    for seed in range(20):
        moved, of_mask = augment(image, mask, (seed,))
        assert (moved == moved[..., :1]).all()
        assert moved.shape == image.shape
        assert of_mask.shape == mask.shape


@pytest.mark.parametrize(
    ("augment", "name"),
    [
        ("strong", "strong: ColorJitter"),
        ("stain_he", "stain_he: StainJitter"),
        (["flips", "HueSaturationValue"], "HueSaturationValue"),
        (["colour"], "ColorJitter"),
        ([{"CLAHE": {"p": 0.01}}], "CLAHE"),
    ],
)
def test_colour_transforms_are_refused_by_name_without_colours(augment, name):
    message = f"data.augment: {name} needs RGB images, and data.channels gives 5 other channels"
    with pytest.raises(UserError, match=message):
        Augmentation(augment, (16, 16), 5, rgb=False)
    Augmentation(augment, (16, 16))


def test_what_needs_colours_is_refused_without_them(stacks, tmp_path):
    for option, value in (("stain", "giemsa"), ("masks", "auto")):
        with pytest.raises(UserError, match=f"data.{option}: {value} is made for the colours of R"):
            stack_module(stacks, tmp_path, **{option: value})


def test_blends_have_all_channels(stacks, tmp_path):
    for channels in (CHOSEN, ("GFP",)):
        smote = {"smote": SmoteConfig(count=30), "balance": "none", "batch_size": 64}
        data = stack_module(stacks, tmp_path, channels=channels, **smote)
        data.setup("fit")
        (batch,) = data.train_dataloader()
        assert batch.images.shape == (60, len(channels), 32, 32)


def test_the_cache_tells_formats_apart(stacks, tmp_path):
    kept = {"cache": CacheConfig(0, tmp_path / "cache")}
    seen = [
        stack_module(stacks, tmp_path, **kept, **options).images.pixels.images[0].tobytes()
        for options in (
            {},
            {"channels": CHOSEN[::-1]},
            {"intensity": Intensity(0, 2000)},
            {"image_size": (32, 24), "fit": "pad"},
            {"image_size": (32, 24), "fit": "pad", "fill": 3},
            {"image_size": (32, 24), "fit": "crop"},
        )
    ]
    assert len(set(seen)) == len(seen)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == len(seen)


def test_an_audit_of_other_channels_is_whole(stacks, tmp_path):
    found = audit(stack_module(stacks, tmp_path, intensity=replace(TWELVE, per="dataset")), [])
    assert found.unreadable == {}
    assert set(found.images.mode) == {"5 chosen channels"}
    assert found.images.histogram.shape == (40, 48)
    assert found.overlap is None
    one = stack_module(stacks, tmp_path, channels=(0,), copies="near")
    assert len(one.table) == 40


def test_images_that_need_a_scale_are_said_to_by_the_audit(stacks, tmp_path):
    data = stack_module(stacks, tmp_path, intensity=None)
    with pytest.raises(
        UserError, match=r"none of the 40 images can be read; 'a/0.tif': it has 16 b"
    ):
        audit(data, [])


# Limits measured over a dataset.

MEASURED = Intensity("percentile 2", "percentile 98", per="dataset")


def trained_values(data, channel):
    samples = [data.table.samples[i] for i in data.partition.indices("train")]
    return np.concatenate([tifffile.imread(s.image)[channel].ravel() for s in samples])


def test_limits_are_the_percentiles_of_the_training_images_alone(stacks, tmp_path):
    data = stack_module(stacks, tmp_path, channels=("GFP", 0), intensity=MEASURED)
    found = data.preprocessing.image_format.limits
    for (low, high), channel in zip(found, (1, 0), strict=True):
        assert (low, high) == tuple(np.percentile(trained_values(data, channel), (2, 98)))
    test = data.table.samples[data.partition.indices("test")[0]].image
    tiff(np.full((5, 40, 40), 60000, np.uint16), metadata=NAMED, ome=True)(test)
    again = stack_module(
        stacks, tmp_path / "other", channels=("GFP", 0), intensity=MEASURED, split=SplitConfig()
    )
    assert again.preprocessing.image_format.limits == found
    train = data.table.samples[data.partition.indices("train")[0]].image
    tiff(np.full((5, 40, 40), 60000, np.uint16), metadata=NAMED, ome=True)(train)
    changed = stack_module(stacks, tmp_path, channels=("GFP", 0), intensity=MEASURED)
    assert changed.preprocessing.image_format.limits != found


def test_a_run_keeps_its_limits_and_uses_them_everywhere(stacks, tmp_path, fit, capsys):
    cache = f"--data.cache.folder={tmp_path / 'cache'}"
    data = [
        "--data=FolderDataModule",
        f"--data.root={stacks}",
        cache,
        "--data.channels=[GFP,0,RFP]",
    ]
    intensity = "--data.intensity={low: percentile 2, high: percentile 98, per: dataset}"
    run = RunFolder(fit(*data, intensity))
    described, _ = read_checkpoint(run.best)
    kept = described.preprocessing.image_format
    assert kept.channels == ("GFP", 0, "RFP")
    assert kept.intensity == MEASURED
    own = read_data(run)
    assert kept.limits == own.preprocessing.image_format.limits
    other = tmp_path / "other"
    rng = np.random.default_rng(9)
    for label, name in enumerate("ab"):
        (other / name).mkdir(parents=True)
        for i in range(12):
            brighter = draw_stack(rng, label)[0] * 3
            tiff(brighter, metadata=NAMED, ome=True)(other / name / f"{i}.tif")
    capsys.readouterr()
    assert main(["test", f"--run={run.path}", f"--data.root={other}", cache]) == 0
    assert "limits is" not in capsys.readouterr().out
    shown = UnlabelledImages([other], None, described.preprocessing)
    image = tifffile.imread(other / "a" / "0.tif")[[1, 0, 2]].transpose(1, 2, 0)
    low, high = np.array(kept.limits).T
    scaled = np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)
    batch = shown[[shown.names.index("a/0.tif")]]
    assert not shown.unreadable
    difference = resize(scaled, (32, 32)).astype(int) - batch.images[0].permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 1
    predict = ["predict", f"--run={run.path}", f"--images={other}"]
    assert main([*predict, f"--output={tmp_path / 'out.csv'}"]) == 0
    assert main(["explain", str(run.path)]) == 0
    assert main(["export", f"--run={run.path}"]) == 0


def test_five_channels_go_through_every_command(stacks, tmp_path, fit, capsys):
    cache = f"--data.cache.folder={tmp_path / 'cache'}"
    data = ["--data=FolderDataModule", f"--data.root={stacks}", cache, "--data.view=masked"]
    how = ["--data.channels=[RFP,0,TL,1,3]", "--data.intensity={low: 0, high: 4095}"]
    run = fit(*data, *how, "--data.augment=geometric", "--data.fit=pad")
    masks = [f"--images={stacks}", f"--masks={stacks / 'masks'}"]
    assert main(["test", f"--run={run}"]) == 0
    heat = [f"--output={tmp_path / 'out.csv'}", f"--explain={tmp_path / 'heat'}"]
    assert main(["predict", f"--run={run}", *masks, *heat]) == 0
    assert main(["export", f"--run={run}"]) == 0
    assert main(["explain", str(run)]) == 0
    assert main(["report", str(run.parent)]) == 0
    assert main(["audit", *data, *how, f"--output={tmp_path / 'audit'}"]) in (0, 1)
    assert "error" not in capsys.readouterr().err


def test_what_differs_in_a_format_is_said(stacks, tmp_path):
    def described(**options):
        prepared = stack_module(stacks, tmp_path, **options).preprocessing
        return Description("1", {}, prepared, "32", "x", "y", "z", None)

    flags = changed_preprocessing(described(), described(channels=(0,), fit="pad"))
    assert flags == [
        "fit is pad here, and was stretch in training",
        f"channels is (0,) here, and was {CHOSEN} in training",
    ]


def test_an_exported_network_says_how_its_images_are_read():
    image_format = ImageFormat(("DAPI", 2), MEASURED, 9, limits=((1, 2), (3, 4.5)))
    prepared = Preprocessing((24, 32), "masked", 9, fit="pad", image_format=image_format)
    read, scaled, *others = preprocessing_steps(prepared)
    assert "the channels 'DAPI', 2, by name or by number from 0, in this order" in read
    assert "the limits are set to [[1, 2], [3, 4.5]] (low and high of each channel)" in scaled
    assert "what is transparent shows the value 9" in scaled
    assert any("pad the image with the value 9 to the shape of 24 x 32" in each for each in others)
    own = replace(image_format, intensity=replace(MEASURED, per="image"), limits=None)
    _, scaled, *_ = preprocessing_steps(replace(prepared, image_format=own))
    assert "low = percentile 2 and high = percentile 98 of each channel of the image" in scaled
    (read,) = preprocessing_steps(Preprocessing((24, 32), "raw", 0, fit="crop"))[:1]
    assert "read the image as 8-bit RGB" in read


def plain_description(**changes):
    prepared = Preprocessing((32, 32), "raw", 7, image_format=ImageFormat(fill=7, **changes))
    head = {"classes": ["a", "b"], "image_size": [32, 32], "backbone": "x", "norm": "batch"}
    channels = prepared.n_channels
    model = head | {"channels": channels, "head": {}}
    return Description("1", model, prepared, "32", "x", "y", "z", None)


def test_checkpoints_keep_the_format_and_older_ones_have_none():
    given = plain_description(channels=("a", 2), intensity=MEASURED, limits=((1, 2), (3, 4.5)))
    buffer = io.BytesIO()
    torch.save(given.as_plain(), buffer)
    buffer.seek(0)
    assert Description.from_plain(torch.load(buffer, weights_only=True)) == given
    old = plain_description().as_plain()
    del old["preprocessing"]["image_format"], old["preprocessing"]["fit"]
    assert Description.from_plain(old).preprocessing == plain_description().preprocessing


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": [["a"]]},
        {"channels": []},
        {"limits": [[1, 2]]},
        {"limits": [[1, float("nan")]] * 3},
        {"intensity": {"low": 1, "high": 2, "per": "x"}},
        {"intensity": {"low": "x", "high": 2, "per": "image"}},
        {"intensity": asdict(MEASURED)},
        {"fill": 8},
        {"more": 1},
    ],
)
def test_a_checkpoint_with_a_wrong_format_is_not_read(wrong):
    plain = plain_description().as_plain()
    plain["preprocessing"]["image_format"] |= wrong
    with pytest.raises((UserError, ValueError, TypeError)):
        Description.from_plain(plain)


# Shapes.


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (33, 47), (48, 48), (1, 90)])
@pytest.mark.parametrize("image_size", [(32, 32), (24, 40), (40, 24)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_aspect_stays_and_the_mask_lies_on_its_image(size, image_size, fit):
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 4 : -(-3 * size[0] // 4), size[1] // 4 : -(-3 * size[1] // 4)] = CYTOPLASM
    image = np.repeat(np.where(mask > 0, 200, 10).astype(np.uint8)[..., None], 3, axis=2)
    prepared = Preprocessing(image_size, "masked", 77, fit=fit)
    try:
        shown, small = prepared.prepare(image, mask, "x")
    except UserError:
        assert size == (1, 90)  # nothing is left of such a cell
        return
    assert shown.shape == (*image_size, 3)
    of_image = shown[..., 0].astype(int) > 105
    rows, columns = (np.flatnonzero(of_image.any(axis)) for axis in (1, 0))
    of_mask = [np.flatnonzero((small > 0).any(axis)) for axis in (1, 0)]
    for ours, theirs in ((rows, of_mask[0]), (columns, of_mask[1])):
        assert abs(ours[0] - theirs[0]) <= 1
        assert abs(ours[-1] - theirs[-1]) <= 1
    height, width = len(of_mask[0]), len(of_mask[1])
    if fit == "pad":
        factor = min(image_size[0] / size[0], image_size[1] / size[1])
        assert abs(height - factor * np.count_nonzero(mask.any(1))) <= 1.5
        assert abs(width - factor * np.count_nonzero(mask.any(0))) <= 1.5


@pytest.mark.parametrize("shape", [(1, 3_000_000), (3_000_000, 1)])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_an_extremely_long_image_does_not_fill_the_memory(shape, fit):
    image = np.full((*shape, 3), 200, np.uint8)  # padded first, it would take 27 TB
    shown, _ = Preprocessing((32, 48), "raw", 9, fit=fit).prepare(image, None, "x")
    assert shown.shape == (32, 48, 3)
    long_side = (0 if shape[0] == 1 else 1) if fit == "pad" else None
    expected = {None: 32 * 48, 0: 48, 1: 32}[long_side]  # padding leaves one line of it
    assert np.count_nonzero((shown == 200).all(axis=2)) == expected


def test_padding_is_the_fill_and_cropping_the_centre():
    image = np.full((20, 60, 2), 100, np.uint8)
    image[:, 20:40] = 200
    padded, _ = Preprocessing((30, 30), "raw", 7, fit="pad").prepare(image, None, "x")
    assert (padded[:10] == 7).all()
    assert (padded[20:] == 7).all()
    assert (padded[10:20, 11:19] == 200).all()
    cropped, _ = Preprocessing((10, 10), "raw", 7, fit="crop").prepare(image, None, "x")
    assert (cropped == 200).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 9])
def test_many_channels_are_resized_as_one_is(channels):
    image = np.random.default_rng(0).integers(0, 255, (50, 40, channels), np.uint8)
    for size in ((20, 30), (80, 20), (50, 40)):
        alone = np.dstack([resize(image[..., i], size) for i in range(channels)])
        assert np.array_equal(resize(image, size), alone)


def test_pictures_of_8_bits_keep_their_pixels(folder_root):
    for path in sorted((folder_root / "blast").iterdir()):
        decoded = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        image = files.read_image(path)
        assert np.array_equal(image, decoded)
        shown, _ = Preprocessing((32, 64), "raw", 0).prepare(image, None, "x")
        once = cv2.resize(decoded, (48, 32), interpolation=cv2.INTER_AREA)
        assert np.array_equal(shown, cv2.resize(once, (64, 32), interpolation=cv2.INTER_LINEAR))


@pytest.mark.shared
def test_real_cells_keep_their_pixels():
    for path in sorted((SHARED / "hpv").rglob("*.bmp"))[::50]:
        assert np.array_equal(files.read_image(path), as_pillow(path))


def test_stretching_by_more_than_a_tenth_is_noted(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "cells"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(10):
            wide = rng.integers(0, 255, (30, 40, 3), np.uint8)
            PIL.Image.fromarray(wide).save(root / name / f"{i}.png")

    def note(**options):
        data = FolderDataModule(root=root, **options)
        return describe_stretching(data, data.table)

    assert note(image_size=32) == (
        "images such as 40x30 are stretched to 32x32 pixels, which changes the aspect of a median "
        "cell by 33%; data.fit: pad or crop keeps it, and so may image_size"
    )
    assert note(image_size=(24, 32)) is None
    assert note(image_size=(26, 32)) is None  # by 8 %
    assert note(image_size=32, fit="pad") is None
    assert "changes the aspect of a median cell by 78%" in note(image_size=(32, 24))
    made = SyntheticDataModule(samples=20, slides=10)
    assert describe_stretching(made, made.table) is None


def test_the_note_is_printed_before_a_run(fit, folder_root, capsys):
    root = [f"--data.root={folder_root}", "--data.image_size=[32,48]"]
    fit("--data=FolderDataModule", *root)
    assert "NOTE       images such as 48x48 are stretched to 48x32" in capsys.readouterr().out
