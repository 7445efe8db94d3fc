"""Look-alikes of the published datasets, drawn into temporary folders."""

import json
import shutil

import cv2
import h5py
import numpy as np
import pytest

from cellbench.data.datasets.fluorescence_demo import draw as draw_fluorescence
from cellbench.data.datasets.wbc9 import CLASSES as WBC9
from tests.conftest import draw_cell, write_image

ORIGINALS_A_CLASS = 8

ROOTS = {
    "HPVDataModule": "hpv_root",
    "HPVSlidesDataModule": "slides_root",
    "BloodCellsDataModule": "blood_cells_root",
    "WBC9DataModule": "wbc9_root",
    "LeukemiaDataModule": "leukemia_root",
    "ChaoyangDataModule": "chaoyang_root",
    "FluorescenceDemoDataModule": "fluorescence_root",
}
"""The fixture that draws each data module's root."""


@pytest.fixture
def leukemia_root(tmp_path):
    """Brackets and spaces in names; two sizes, of which the larger hints at the class; a copy."""
    root, rng = tmp_path / "leukemia", np.random.default_rng(0)
    names = ("Benign", "[Malignant] early Pre-B", "[Malignant] Pre-B", "[Malignant] Pro-B")
    for label, name in enumerate(names):
        folder = root / "Blood cell Cancer [ALL]" / name
        for number in range(12):
            image = cv2.resize(draw_cell(rng, label, 48)[0], (64, 48))
            if label in (0, 3) and number == 0:
                image = cv2.resize(image, (160, 120))
            stem = f"Snap_{number:03d} (3)" if number % 2 else f"Sap_{number:03d} (25)"
            write_image(folder / f"{stem}.jpg", image)
        shutil.copy(folder / "Snap_001 (3).jpg", folder / "Snap_099 (3).jpg")
    return root


@pytest.fixture
def fluorescence_root(tmp_path):
    """The demo itself."""
    root = tmp_path / "fluorescence_demo"
    root.mkdir()
    draw_fluorescence(root)
    return root


@pytest.fixture
def wbc9_root(tmp_path):
    """Nine folders and a folder without labels."""
    root, rng = tmp_path / "wbc9", np.random.default_rng(0)
    for label, name in enumerate(WBC9):
        for number in range(8):
            image = draw_cell(rng, label % 4, 64)[0]
            write_image(root / "wbc" / name / f"{number // 2}_{number}_9{label}_3_256.png", image)
    for number in range(1, 4):
        write_image(root / "classify-images" / f"{number}.jpg", draw_cell(rng, 0, 64)[0])
    return root


@pytest.fixture
def chaoyang_root(tmp_path):
    """Two lists; slides of one case; annotators who differ."""
    root, rng = tmp_path / "chaoyang", np.random.default_rng(0)
    for part, n_slides in (("train", 12), ("test", 4)):
        entries = []
        for slide in range(n_slides):
            case, number = 353000 + slide // 2 + (0 if part == "train" else 500), slide % 2 + 1
            for label in range(4):
                joint = "_" if slide % 4 < 2 else "-"
                name = f"{part}/{case}{joint}{number}-IMG005x01{label}-{label}.JPG"
                image = np.clip(rng.normal(60 + 40 * label, 30, (64, 64, 3)), 0, 255)
                write_image(root / name, image.astype(np.uint8))
                other = (label + 1) % 4 if slide == 0 else label
                third = (label + 2) % 4 if slide == 0 and label else label
                entries.append(
                    {"label": label, "name": name, "label_B": other, "label_A": third}
                    | {"label_C": label if slide else other}
                )
        (root / f"{part}.json").write_text(json.dumps(entries))
    return root


@pytest.fixture
def slides_root(tmp_path):
    """Ten HDF5 files, grey cells of (n, 1, 80, 80)."""
    root, rng = tmp_path / "slides", np.random.default_rng(0)
    root.mkdir()
    for number in (3, 4, 5, 6, 7, 8, 12, 36, 37, 38):
        cells = rng.integers(40, 90 if number < 9 else 200, (9, 1, 80, 80))
        with h5py.File(root / f"glass{number}.hdf5", "w") as file:
            file["data"] = cells.astype(np.uint8) if number % 2 else cells / 255
    return root


def draw_field(rng, label):
    """A smear of 320x240 with corners enough to be recognised: cells, and one of the class."""
    image = np.full((240, 320, 3), (215, 205, 210), np.uint8)
    for _ in range(40):
        centre = (int(rng.integers(320)), int(rng.integers(240)))
        colour = (205 - int(rng.integers(30)), 150 + int(rng.integers(30)), 165)
        cv2.circle(image, centre, int(rng.integers(10, 22)), colour, -1, cv2.LINE_AA)
        cv2.circle(image, centre, 5, (225, 190, 200), -1, cv2.LINE_AA)
    for _ in range(25):
        corners = rng.integers(0, (320, 240), (1, 2)) + rng.integers(-8, 8, (5, 2))
        cv2.fillPoly(image, [corners.astype(np.int32)], (120, 70, 150 - 5 * label))
    cv2.circle(image, (160, 120), 30, (90 + 30 * label, 60, 140), -1)
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def drawn_blood_cells(tmp_path_factory):
    """The layout with originals, of which 6 a class make 4 training copies, and 2 test copies."""
    root, rng = tmp_path_factory.mktemp("blood_cells"), np.random.default_rng(0)
    rows, number, true = [",Image,Category"], 0, {}
    names = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
    for label, name in enumerate(names):
        for k in range(ORIGINALS_A_CLASS):
            field = draw_field(rng, label)
            original = root / "Original_Images" / f"BloodImage_{number:05d}.jpg"
            write_image(original, cv2.resize(field, (640, 480), interpolation=cv2.INTER_CUBIC))
            rows.append(f",{number},{name}")
            part = "TRAIN" if k < 6 else "TEST"
            if part == "TEST":
                write_image(root / "images" / "TEST_SIMPLE" / name / f"_{k}_1.jpeg", field)
            for copy in range(4):
                turn = cv2.getRotationMatrix2D((160, 120), rng.uniform(-20, 20), 1)
                turn[:, 2] += rng.uniform(-0.1, 0.1, 2) * (320, 240)
                turn[0, 1] += rng.uniform(-0.1, 0.1)
                turned = cv2.warpAffine(field, turn, (320, 240), borderMode=cv2.BORDER_REPLICATE)
                turned = cv2.flip(turned, int(copy) - 1) if copy < 3 else turned
                # The number in the name says nothing, as in the real set.
                path = root / "images" / part / name / f"_{copy}_{rng.integers(10**6)}.jpeg"
                write_image(path, turned)
                true[path.relative_to(root).as_posix()] = original.relative_to(root).as_posix()
            number += 1
    for category in ("", "BASOPHIL", '"NEUTROPHIL, EOSINOPHIL"', "NEUTROPHIL"):
        rows.append(f",{number},{category}")  # the last has no image
        if category != "NEUTROPHIL":
            original = root / "Original_Images" / f"BloodImage_{number:05d}.jpg"
            write_image(original, draw_field(rng, 0))
        number += 1
    (root / "labels.csv").write_bytes("\r\n".join(rows).encode())
    return root, true


@pytest.fixture
def blood_cells_root(drawn_blood_cells):
    return drawn_blood_cells[0]
