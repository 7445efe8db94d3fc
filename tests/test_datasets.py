"""The published datasets, from look-alikes of their real layouts."""

import csv
import json
import shutil
from dataclasses import replace
from functools import partial

import cv2
import h5py
import numpy as np
import pytest

from cellbench.__main__ import main
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.blood_cells import BloodCellsDataModule
from cellbench.data.datasets.chaoyang import ChaoyangDataModule
from cellbench.data.datasets.hpv_slides import HPVSlidesDataModule
from cellbench.data.datasets.leukemia import LeukemiaDataModule
from cellbench.data.datasets.wbc9 import CLASSES as WBC9
from cellbench.data.datasets.wbc9 import WBC9DataModule
from cellbench.data.duplicates import sources
from cellbench.data.splits import SplitConfig
from cellbench.utils.errors import UserError
from tests.conftest import SHARED, write_image
from tests.lookalikes import ORIGINALS_A_CLASS, draw_field
from tests.test_data_modules import DataModuleContract


class TestLeukemia(DataModuleContract):
    module, layout = LeukemiaDataModule, "leukemia_root"

    def test_the_order_is_that_of_the_disease_and_copies_share_a_group(self):
        data = self.make()
        assert data.classes == ("benign", "early pre-B", "pre-B", "pro-B")
        assert np.bincount(data.table.labels).tolist() == [13] * 4
        assert len(set(data.table.groups())) == 4 * 12
        first = data.table.samples[0]
        assert first.id.startswith("Blood cell Cancer [ALL]/Benign/Sap_000 (25)")

    def test_an_unreadable_file_is_named_and_can_be_left_out(self):
        bad = self.root / "Blood cell Cancer [ALL]" / "Benign" / "Snap_003 (3).jpg"
        bad.write_bytes(bad.read_bytes()[:300])
        with pytest.raises(UserError, match=r"Snap_003 \(3\)\.jpg: the file is cut short"):
            self.build()
        name = bad.relative_to(self.root).as_posix()
        data = self.build(exclude=(name,))
        assert np.bincount(data.table.labels).tolist() == [12, 13, 13, 13]
        with pytest.raises(UserError, match=r"data\.exclude: there is no sample '.*closest"):
            _ = self.make(exclude=(name + "x",)).table

    def test_what_differs_from_the_published_set_is_said(self):
        note = self.make().note
        assert note.startswith("not the published set: benign 13 of 512, early pre-B 13 of 979")

    @pytest.mark.parametrize("where", ["deeper", "higher"])
    def test_a_root_that_is_not_quite_right_is_mended_in_a_line(self, where):
        wrong = self.root / "Blood cell Cancer [ALL]" if where == "deeper" else self.root.parent
        with pytest.raises(UserError, match=r"data\.root: the folder is in .*leukemia; give that"):
            _ = LeukemiaDataModule(root=wrong).table

    def test_a_wrong_class_folder_is_named(self):
        folder = self.root / "Blood cell Cancer [ALL]"
        (folder / "Begnin").mkdir()
        with pytest.raises(UserError, match=r"Begnin is no class of this dataset; closest: Benign"):
            _ = self.make().table
        (folder / "Begnin").rmdir()
        (folder / "Benign").rename(folder / "benign")
        with pytest.raises(UserError, match=r"has no folder 'Benign'; closest: benign"):
            _ = self.make().table


class TestWBC9(DataModuleContract):
    module, layout = WBC9DataModule, "wbc9_root"

    def make(self, **arguments):
        return super().make(**{"by_slide": False} | arguments)

    def test_the_slide_is_the_group_where_the_name_tells_it(self):
        shutil.copy(
            self.root / "wbc" / "bands" / "0_0_90_3_256.png", self.root / "wbc" / "bands" / "x.png"
        )
        samples = self.make(by_slide=True).table.samples
        assert {sample.group for sample in samples} == {None, *(f"slide {n}" for n in range(4))}
        assert all(sample.group is None for sample in self.make().table.samples)

    def test_the_images_without_labels_can_be_predicted(self, fit):
        run = fit("--data=WBC9DataModule", f"--data.root={self.root}", "--data.by_slide=false")
        images = self.root / "classify-images"
        assert main(["predict", "--run", str(run), "--images", str(images)]) == 0
        rows = (run / "predict" / "classify-images.csv").read_text().splitlines()
        assert rows[0].split(",")[3:] == [f"p_{name}" for name in WBC9]
        assert [row.split(",")[0] for row in rows[1:]] == ["1.jpg", "2.jpg", "3.jpg"]


class TestChaoyang(DataModuleContract):
    module, layout = ChaoyangDataModule, "chaoyang_root"

    def test_the_official_split_is_that_of_the_lists(self):
        drawn = self.make(split=SplitConfig(protocol="official")).drawn
        table = self.make().table
        for sample, part in zip(table.samples, drawn.parts, strict=True):
            assert (part == "test") == sample.id.startswith("test/")

    @pytest.mark.parametrize(("group", "number"), [("slide", 16), ("case", 8)])
    def test_slides_or_cases_stay_whole(self, group, number):
        assert len(set(self.make(group=group).table.groups())) == number

    def test_the_label_is_whose_it_is_asked_for(self):
        """The first slide's tiles: final 0 1 2 3; A 0 3 0 1; B and C 1 2 3 0."""

        def of_first_slide(label):
            samples = self.make(label=label).table.samples
            return [s.label for s in samples if s.id.startswith("train/353000_1")]

        assert of_first_slide("final") == [0, 1, 2, 3]
        assert of_first_slide("A") == [0, 3, 0, 1]
        assert of_first_slide("B") == of_first_slide("majority") == [1, 2, 3, 0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda e: {"a": e}, r"train\.json is not a list"),
            (lambda e: [*e, 3], r"entry 48: not an object with a name"),
            (lambda e: [e[0] | {"label_B": 4}], r"entry 0: label, .* must be 0 to 3"),
            (lambda e: [e[0] | {"label_B": None}], r"entry 0: label, .* must be 0 to 3"),
            (lambda e: [e[0] | {"name": "train/x.JPG"}], r"'train/x\.JPG' does not tell its slide"),
            (
                lambda e: [e[0] | {"name": "../1_1-IMG005x014-1.JPG"}],
                r"leaves the dataset's folder",
            ),
            (lambda e: [e[0] | {"name": "train/1_1-IMG005x014-1.JPG"}], r"1\.JPG is missing; ask"),
        ],
    )
    def test_a_list_of_another_shape_is_said(self, change, message):
        path = self.root / "train.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        with pytest.raises(UserError, match=message):
            _ = self.make().table

    def test_a_broken_list_is_said(self):
        (self.root / "train.json").write_text("[{")
        with pytest.raises(UserError, match=r"train\.json is not valid JSON"):
            _ = self.make().table


class TestHPVSlides(DataModuleContract):
    module, layout = HPVSlidesDataModule, "slides_root"

    def test_slides_stay_whole_and_the_centre_is_shown(self):
        data = self.build(image_size=48)
        assert np.bincount(data.table.labels).tolist() == [54, 36]
        assert len(set(data.table.groups())) == 10
        for group in set(data.drawn.groups):
            assert len(set(data.drawn.parts[data.drawn.groups == group])) == 1
        for name in ("glass3.hdf5", "glass4.hdf5"):
            with h5py.File(self.root / name) as file:
                cell = file["data"][7, 0, 16:64, 16:64]
            expected = cell if cell.dtype == np.uint8 else np.rint(cell * 255)
            positions = [i for i, s in enumerate(data.table.samples) if s.id == f"{name}/000007"]
            for channel in range(3):
                assert np.array_equal(
                    data.images.pixels.images[positions[0]][..., channel], expected
                )

    def test_cells_are_drawn_by_their_seed(self):
        ids = [
            [sample.id for sample in self.make(cells=4, draw_seed=seed).table.samples]
            for seed in (0, 0, 1)
        ]
        assert len(ids[0]) == 40
        assert ids[0] == ids[1] != ids[2]

    def test_a_file_without_data_is_said(self):
        path = self.root / "glass12.hdf5"
        with h5py.File(path, "w") as file:
            file["cells"] = np.zeros((3, 80, 80))
        with pytest.raises(UserError, match=r"glass12\.hdf5 has no dataset 'data' of .*it has cel"):
            _ = self.make().table
        with h5py.File(path, "w") as file:
            file["data"] = np.full((3, 1, 80, 80), 300)
        with pytest.raises(UserError, match=r"grey values are int64 of 300 to 300; expected"):
            _ = self.make().table
        path.write_bytes(b"no HDF5")
        with pytest.raises(UserError, match=r"cannot read .*glass12\.hdf5"):
            _ = self.make().table
        path.unlink()
        with pytest.raises(UserError, match=r"glass12\.hdf5 is missing; the slides are not public"):
            _ = self.make().table


class TestBloodCells(DataModuleContract):
    @pytest.fixture(autouse=True)
    def _root(self, drawn_blood_cells, tmp_path_factory):
        self.root, self.true = drawn_blood_cells
        self.cache = CacheConfig(folder=tmp_path_factory.getbasetemp() / "blood_cells_cache")

    def make(self, **arguments):
        return BloodCellsDataModule(**{"root": self.root, "cache": self.cache} | arguments)

    def test_every_copy_is_grouped_with_its_original(self):
        table = self.make().table
        assert {sample.id: sample.group for sample in table.samples} == self.true
        assert len(set(table.groups())) == 4 * ORIGINALS_A_CLASS

    def test_the_originals_are_found_once_for_all_runs(self, monkeypatch):
        expected = [sample.group for sample in self.make().table.samples]
        monkeypatch.setattr(sources, "Originals", None)
        assert [sample.group for sample in self.make().table.samples] == expected

    def test_the_official_test_set_may_be_the_originals_of_its_copies(self):
        split = SplitConfig(protocol="official", val=0.2)
        for official, n in (("TEST", 4 * 2 * 4), ("TEST_SIMPLE", 4 * 2)):
            data = self.make(official_test=official, split=split)
            tested = data.drawn.indices("test")
            assert len(tested) == n
            assert all(f"images/{official}/" in data.table.samples[i].id for i in tested)
        groups = {sample.group for sample in data.table.samples}
        assert len(groups) == 4 * ORIGINALS_A_CLASS

    def test_the_originals_show_one_cell_of_the_four_classes(self):
        data = self.make(kind="originals")
        assert np.bincount(data.table.labels).tolist() == [ORIGINALS_A_CLASS] * 4
        assert data.read_image(data.table.samples[0]).shape == (480, 640, 3)

    def test_without_the_originals_the_copies_themselves_are_grouped(self, tmp_path):
        shutil.copytree(self.root / "images", tmp_path / "images")
        with pytest.raises(UserError, match=r"has no Original_Images, .*use data\.copies: near"):
            _ = self.make(root=tmp_path).table
        data = self.make(root=tmp_path, copies="near")
        assert len(data.table) == len(self.true)
        found = dict(zip((s.id for s in data.table.samples), data.table.groups(), strict=True))
        together = {(found[name], self.true[name]) for name in found}
        assert len(together) == len(set(found.values()))  # no group holds copies of two originals
        originals = len(set(self.true.values()))
        assert originals <= len(together) <= originals + 1  # and few originals have two groups

    def test_without_the_originals_a_leaky_split_can_be_drawn(self, tmp_path):
        shutil.copytree(self.root / "images", tmp_path / "images")
        leaky = self.make(root=tmp_path, split=SplitConfig(protocol="image"))
        assert len(leaky.table) == len(self.true)
        assert leaky.drawn.leaky

    def test_two_photographs_of_one_field_are_one_group(self, tmp_path):
        shutil.copytree(self.root, tmp_path / "set")
        originals = tmp_path / "set" / "Original_Images"
        first = cv2.imread(str(originals / "BloodImage_00000.jpg"))  # trains
        moved = np.roll(first, (60, -80), (0, 1))
        cv2.imwrite(str(originals / "BloodImage_00007.jpg"), moved)  # tests
        for image in (tmp_path / "set" / "images" / "TEST" / "EOSINOPHIL").iterdir():
            if self.true[image.relative_to(tmp_path / "set").as_posix()].endswith("7.jpg"):
                cv2.imwrite(str(image), cv2.resize(moved, (320, 240)))
        root = tmp_path / "set"
        official = SplitConfig(protocol="official", val=0.2)
        with pytest.raises(UserError, match=r"the split leaks: .*or data\.split\.purge: true"):
            _ = self.make(root=root, split=official).drawn
        split = self.make(root=root, split=replace(official, purge=True)).drawn
        assert (split.parts == "purged").sum() == 4  # the copies of the first
        assert (split.parts == "test").sum() == 4 * 2 * 4
        assert not set(split.groups[split.parts == "test"]) & set(
            split.groups[np.isin(split.parts, ("train", "val"))]
        )

    def test_kaggles_own_layout_is_found(self, tmp_path):
        shutil.copytree(self.root / "images", tmp_path / "dataset2-master" / "images")
        originals = tmp_path / "dataset-master" / "JPEGImages"
        shutil.copytree(self.root / "Original_Images", originals)
        with pytest.raises(UserError, match=r"the originals' label file .*labels\.csv is missing"):
            _ = self.make(root=tmp_path).table
        shutil.copy(self.root / "labels.csv", tmp_path / "dataset-master" / "labels.csv")
        assert len(set(self.make(root=tmp_path).table.groups())) == 4 * ORIGINALS_A_CLASS

    def test_an_image_of_no_original_is_its_own_group(self, tmp_path):
        shutil.copytree(self.root, tmp_path / "set")
        stranger = draw_field(np.random.default_rng(99), 1)
        write_image(tmp_path / "set" / "images" / "TRAIN" / "MONOCYTE" / "_0_0.jpeg", stranger)
        samples = {sample.id: sample for sample in self.make(root=tmp_path / "set").table.samples}
        assert samples["images/TRAIN/MONOCYTE/_0_0.jpeg"].group is None
        assert sum(sample.group is None for sample in samples.values()) == 1
        note = self.make(root=tmp_path / "set").note
        assert note.endswith("; 1 match no original, the first 'images/TRAIN/MONOCYTE/_0_0.jpeg'")


@pytest.mark.shared
@pytest.mark.slow
def test_the_real_blood_cells_are_assigned_to_their_originals():
    split = SplitConfig(protocol="official", purge=True)
    data = BloodCellsDataModule(root=SHARED / "blood_cells", split=split)
    samples = data.table.samples
    assert all(sample.group is not None for sample in samples)
    fields = {sample.group for sample in samples}
    assert len(fields) == 322
    test = {sample.group for sample in samples if sample.split == "test"}
    trained = data.drawn.indices("train")
    assert not test & {samples[i].group for i in trained}
    assert 0 < (data.drawn.parts == "purged").sum() < 20


def test_a_run_notes_what_differs(fit, leukemia_root, capsys):
    fit("--data=LeukemiaDataModule", f"--data.root={leukemia_root}")
    assert "NOTE       not the published set: benign 13 of 512" in capsys.readouterr().out


def test_training_aims_at_the_annotators_votes(chaoyang_root):
    make = partial(
        ChaoyangDataModule,
        root=chaoyang_root,
        image_size=32,
        batch_size=64,
        split=SplitConfig(protocol="official", val=0.3),
    )
    soft, hard = make(label="votes"), make()
    for data in (soft, hard):
        data.setup("fit")
    assert hard.targets is None
    assert (soft.table.labels == hard.table.labels).all()
    (batch,) = soft.train_dataloader()
    shares = batch.targets.numpy()
    assert shares.dtype == np.float32
    assert np.allclose(shares.sum(axis=1), 1)
    votes = [soft.table.samples[i].votes for i in batch.positions]
    for row, three in zip(shares, votes, strict=True):
        assert np.allclose(row, np.bincount(three, minlength=4) / 3)
    assert {round(float(v), 3) for v in soft.targets.max(axis=1)} == {0.667, 1.0}
    assert next(iter(soft.val_dataloader())).targets is None
    assert next(iter(hard.train_dataloader())).targets is None


def test_other_votes_are_another_training(chaoyang_root):
    def digest(label):
        data = ChaoyangDataModule(
            root=chaoyang_root, label=label, split=SplitConfig(protocol="official", val=0.3)
        )
        return data.training.digest

    before = {label: digest(label) for label in ("final", "votes")}
    path = chaoyang_root / "train.json"
    entries = json.loads(path.read_text())
    for entry in entries:  # the final label stays
        entry["label_A"] = (entry["label_A"] + 1) % 4
    path.write_text(json.dumps(entries))
    assert digest("final") == before["final"]
    assert digest("votes") != before["votes"]


def test_a_run_trains_on_votes(fit, chaoyang_root):
    def first_loss(*more):
        options = ("--data=ChaoyangDataModule", f"--data.root={chaoyang_root}")
        official = "--data.split={protocol: official, val: 0.2, seed: 1}"
        run = fit(*options, official, *more, "--trainer.precision=32-true")
        return float(next(csv.DictReader((run / "history.csv").open()))["train/loss"])

    votes, final = first_loss("--data.label=votes"), first_loss()
    assert votes != final
    assert votes == pytest.approx(final, abs=0.2)  # they differ on one slide
    weighted = first_loss("--data.label=votes", "--model.class_weights=balanced")
    assert weighted == pytest.approx(votes, rel=1e-5)  # the classes are of one size
    assert first_loss("--data.label=votes", "--model.freeze=backbone") not in (votes, final)
