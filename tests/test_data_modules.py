"""What every data module must keep; a new dataset inherits the contract."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch

from cellbench.__main__ import main
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.data.datasets.hpv import HPVDataModule
from cellbench.data.datasets.synthetic import SyntheticDataModule
from cellbench.data.loading import LoadingPlan
from cellbench.data.splits import SplitConfig
from cellbench.data.views import BACKGROUND
from cellbench.utils.errors import UserError
from tests.conftest import SHARED, draw_cell, write_image

FILL = 7


def batches(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def by_position(loader, epoch=0):
    """Every image of a loader, in the table's order."""
    drawn = batches(loader, epoch)
    positions = torch.cat([batch.positions for batch in drawn])
    return torch.cat([batch.images for batch in drawn])[positions.argsort()]


class DataModuleContract:
    """Inherit it, and give the module, and the fixture that draws its layout; or `make`."""

    module: type
    layout = ""
    view = "raw"

    @pytest.fixture(autouse=True)
    def _root(self, request):
        if self.layout:
            self.root = request.getfixturevalue(self.layout)

    def make(self, **arguments):
        return self.module(root=self.root, **arguments)

    def build(self, **arguments):
        data = self.make(**({"image_size": 32, "batch_size": 7} | arguments))
        data.setup("fit")
        data.plan = data.plan_loading("cpu", 1)
        return data

    def test_classes_are_known_before_any_image_is_read(self):
        data = self.make()
        assert len(data.classes) >= 2
        assert data.classes == tuple(data.classes)
        assert all(isinstance(name, str) and name for name in data.classes)

    def test_every_sample_is_seen_once_and_every_part_has_every_class(self):
        data = self.build()
        seen = []
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            drawn = batches(loader)
            labels = torch.cat([batch.labels for batch in drawn])
            assert set(labels.tolist()) == set(range(len(data.classes)))
            seen += torch.cat([batch.positions for batch in drawn]).tolist()
            for batch in drawn:
                assert torch.equal(batch.labels, torch.tensor(data.table.labels[batch.positions]))
        assert sorted(seen) == list(range(len(data.table)))

    def test_batches_are_uint8_channels_last_of_nearly_equal_size(self):
        data = self.build()
        drawn = batches(data.train_dataloader())
        sizes = {len(batch.labels) for batch in drawn}
        assert max(sizes) <= 7
        assert max(sizes) - min(sizes) <= 1
        for batch in drawn:
            assert batch.images.dtype == torch.uint8
            assert batch.images.shape[1:] == (data.n_channels, 32, 32)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)

    def test_folds_test_every_sample_once(self):
        tested = []
        for fold in range(3):
            data = self.make(split=SplitConfig(folds=3, fold=fold))
            tested += data.partition.indices("test").tolist()
        assert sorted(tested) == list(range(len(data.table)))

    def test_workers_and_runs_change_nothing_and_epochs_do(self):
        alone = self.build(augment="strong").train_dataloader()
        helped = self.build(augment="strong", num_workers=2).train_dataloader()
        assert helped.num_workers == 2
        for epoch in (0, 1):
            for a, b in zip(batches(alone, epoch), batches(helped, epoch), strict=True):
                assert torch.equal(a.images, b.images)
                assert torch.equal(a.positions, b.positions)
        assert not torch.equal(by_position(alone, 0), by_position(alone, 1))
        orders = [[b.positions.tolist() for b in batches(alone, epoch)] for epoch in (0, 1)]
        assert orders[0] != orders[1]

    def test_examples_show_every_class_as_the_network_sees_it(self):
        data = self.build(view=self.view, augment="strong")
        for part in ("train", "val", "test"):
            n = len(data.classes)
            shown = data.examples(part, n=n + 2)
            assert shown.labels[:n].tolist() == list(range(n))
            assert set(shown.positions.tolist()) <= set(data.partition.indices(part).tolist())
        whole = by_position(data.test_dataloader())
        shown = data.examples("test")
        order = {int(p): i for i, p in enumerate(np.sort(data.partition.indices("test")))}
        for image, position in zip(shown.images, shown.positions, strict=True):
            assert torch.equal(image, whole[order[int(position)]])

    def test_evaluation_is_never_augmented(self):
        plain, strong = self.build(), self.build(augment="strong")
        for name in ("val_dataloader", "test_dataloader"):
            a, b = (by_position(getattr(data, name)(), epoch=3) for data in (plain, strong))
            assert torch.equal(a, b)


class MaskedContract(DataModuleContract):
    """The same, of a dataset with masks."""

    view = "masked"

    @pytest.mark.parametrize("policy", ["none", "strong"])
    def test_no_pixel_outside_the_mask_is_shown_in_any_part(self, policy):
        data = self.build(view="masked", fill=FILL, augment=policy)
        raw = self.build(augment=policy)
        assert data.partition.digest == raw.partition.digest
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            shown = by_position(getattr(data, name)())
            whole = by_position(getattr(raw, name)())
            hidden = (shown == FILL).all(dim=1)
            assert hidden.float().mean() > 0.1
            # what is shown is what the raw view shows, at the same place, whatever the transform
            visible = (~hidden)[:, None].expand_as(shown)
            assert torch.equal(shown[visible], whole[visible])

    def test_the_mask_decides_what_is_hidden(self):
        data = self.build(view="masked", fill=FILL)
        for batch in batches(data.test_dataloader()):
            for image, position in zip(batch.images, batch.positions, strict=True):
                _, mask = data.images.pixels.read(int(position))
                assert (image.numpy()[:, mask == BACKGROUND] == FILL).all()


class TestSynthetic(MaskedContract):
    def make(self, **arguments):
        return SyntheticDataModule(samples=90, slides=45, **arguments)

    def test_the_drawing_depends_on_its_seed_alone(self):
        first, again = self.build(), self.build(split=SplitConfig(seed=4))
        other = self.build(draw_seed=1)
        assert np.array_equal(first.images.pixels.images, again.images.pixels.images)
        assert not np.array_equal(first.images.pixels.images, other.images.pixels.images)

    def test_the_shortcut_is_in_the_background_and_only_there(self):
        """A nearest-mean classifier of the background's colour finds it, and nothing without."""
        found = {}
        for strength in (0.0, 1.0):
            data = SyntheticDataModule(
                samples=160, slides=80, shortcut=strength, view="background", image_size=32
            )
            data.setup("fit")
            nucleus = SyntheticDataModule(
                samples=160, slides=80, shortcut=strength, view="nucleus", image_size=32
            )
            nucleus.setup("fit")
            found[strength] = self.nearest_mean(data), self.nearest_mean(nucleus)
        assert found[0.0][0] < 0.45
        assert found[1.0][0] > 0.65
        assert found[1.0][1] == pytest.approx(found[0.0][1], abs=0.1)

    def nearest_mean(self, data):
        """Mean test recall of the class whose mean colour of what is shown is nearest."""
        colours = {}
        for part in ("train", "test"):
            images = by_position(getattr(data, f"{part}_dataloader")()).float()
            shown = (images > 0).any(dim=1, keepdim=True)
            colours[part] = ((images * shown).sum((2, 3)) / shown.sum((2, 3))).numpy()
        labels, partition = data.table.labels, data.partition
        train, test = (labels[partition.indices(part)] for part in ("train", "test"))
        means = np.array([colours["train"][train == k].mean(0) for k in range(4)])
        nearest = np.linalg.norm(colours["test"][:, None] - means, axis=2).argmin(axis=1)
        return np.mean([(nearest[test == k] == k).mean() for k in range(4)])


class TestHPV(MaskedContract):
    module, layout = HPVDataModule, "hpv_root"

    def test_the_basophil_is_left_out_and_labels_are_by_name(self):
        table = self.make().table
        assert len(table) == 50
        assert np.bincount(table.labels).tolist() == [20, 12, 10, 8]
        assert table.samples[0].id == "Dataset 1/001.bmp"
        assert table.classes == ("neutrophil", "lymphocyte", "monocyte", "eosinophil")

    def test_images_are_rgb(self):
        data = self.make()
        image = data.read_image(data.table.samples[0])
        assert image[60, 2].tolist() == pytest.approx([230, 220, 222], abs=30)
        assert image[60, 2, 0] > image[60, 2, 1] - 20

    @pytest.mark.parametrize("number", ["007", "020"])
    def test_a_missing_label_or_image_is_named(self, number):
        csv = self.root / "Class Labels of Dataset 1.csv"
        whole = csv.read_text()
        csv.write_text(
            "\n".join(r for r in whole.splitlines() if not r.startswith(f"{int(number)},"))
        )
        with pytest.raises(UserError, match=rf"{number}\.bmp has no label in"):
            _ = self.make().table
        csv.write_text(whole)
        (self.root / "Dataset 1" / f"{number}.bmp").unlink()
        with pytest.raises(UserError, match=rf"labels image {number}, but .*{number}\.bmp is miss"):
            _ = self.make().table


class TestFolder(MaskedContract):
    module, layout = FolderDataModule, "folder_root"


class TestFolderTable(TestFolder):
    @pytest.fixture(autouse=True)
    def _table(self, _root):
        rows = ["path,label,mask,group"]
        for number, path in enumerate(sorted(self.root.glob("[bn]*/*.jpg"))):
            name = path.relative_to(self.root)
            mask = f"masks/{name.with_suffix('.png')}"
            rows.append(f"{name},{path.parent.name},{mask},patient {number // 2}")
        (self.root / "table.csv").write_text("\n".join(rows) + "\n")

    def make(self, **arguments):
        return FolderDataModule(root=self.root, csv="table.csv", **arguments)

    def test_patients_stay_whole(self):
        partition = self.make().partition
        for group in np.unique(partition.groups):
            assert len(set(partition.parts[partition.groups == group])) == 1
        assert len(np.unique(partition.groups)) == 20

    def test_an_official_split_is_taken(self):
        table = self.root / "table.csv"
        header, *rows = table.read_text().splitlines()
        split = ["test" if i % 20 < 6 else "train" for i in range(len(rows))]
        rows = [f"{row},{part}" for row, part in zip(rows, split, strict=True)]
        table.write_text("\n".join([f"{header},split", *rows]))
        partition = self.make(split=SplitConfig(protocol="official")).partition
        # the table is in the order of the ids, as the rows are
        assert [part == "test" for part in partition.parts] == [part == "test" for part in split]


def test_a_wrong_mask_is_named(folder_root):
    mask = folder_root / "masks" / "blast" / "3 (0).png"
    write_image(mask, np.zeros((40, 48), np.uint8))
    data = FolderDataModule(root=folder_root, view="masked")
    with pytest.raises(UserError, match=r"3 \(0\)\.png is 48x40 but its image is 48x48"):
        data.setup("fit")
    write_image(mask, np.full((48, 48), 77, np.uint8))
    with pytest.raises(
        UserError, match=r"3 \(0\)\.png: 2,304 of 2,304 pixels \(more than 1%\) are none of 0, 12"
    ):
        data.setup("fit")
    mask.unlink()
    with pytest.raises(UserError, match=r"masked needs a mask, and 'blast/3 \(0\)\.jpg' has none"):
        FolderDataModule(root=folder_root, view="masked").setup("fit")


def test_two_images_do_not_share_a_mask(folder_root, fails):
    image, _ = draw_cell(np.random.default_rng(5), 0, 48)
    write_image(folder_root / "blast" / "3 (0).bmp", image)
    command = ["fit", "--data=FolderDataModule", f"--data.root={folder_root}"]
    line = fails(*command, "--data.view=masked", "--data.group_pattern=none")
    mask = folder_root / "masks" / "blast" / "3 (0).png"
    assert line.startswith(f"'blast/3 (0).bmp' and 'blast/3 (0).jpg' have one mask, {mask}; ")
    left = FolderDataModule(
        root=folder_root, view="masked", exclude=("blast/3 (0).bmp",), group_pattern="none"
    )
    assert len(left.table) == 40


@pytest.mark.parametrize("second", ["masks/blast/0 (0).png", "masks/link.png"])
def test_two_rows_of_a_table_do_not_name_one_mask(folder_root, fails, second):
    (folder_root / "masks" / "link.png").symlink_to("blast/0 (0).png")
    rows = [f"{i} (0).jpg,masks/blast/{i} (0).png" for i in range(20)]
    rows[1] = f"1 (0).jpg,{second}"
    table = ["path,mask,label", *(f"blast/{row},{'ab'[i % 2]}" for i, row in enumerate(rows))]
    (folder_root / "t.csv").write_text("\n".join(table))
    line = fails(
        "fit",
        "--data=FolderDataModule",
        f"--data.root={folder_root}",
        "--data.csv=t.csv",
        "--data.view=masked",
    )
    assert line.startswith("'blast/0 (0).jpg' and 'blast/1 (0).jpg' have one mask, ")


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_an_unreadable_image_is_named(folder_root, damage):
    image = folder_root / "blast" / "3 (0).jpg"
    whole = image.read_bytes()
    image.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"no image"}[damage])
    with pytest.raises(UserError, match=r"cannot read .*3 \(0\)\.jpg: the file is"):
        FolderDataModule(root=folder_root).setup("fit")


def test_sixteen_bits_are_refused_and_not_turned_black(folder_root):
    image = folder_root / "blast" / "sixteen.png"
    cv2.imwrite(str(image), np.full((48, 48), 4000, np.uint16))
    with pytest.raises(UserError, match=r"sixteen\.png has 16 bits per channel"):
        FolderDataModule(root=folder_root).setup("fit")


def test_pages_are_refused_and_not_dropped(folder_root):
    pages = [np.zeros((48, 48, 3), np.uint8)] * 2
    cv2.imwritemulti(str(folder_root / "blast" / "stack.tif"), pages)
    with pytest.raises(UserError, match=r"stack\.tif has 2 pages"):
        FolderDataModule(root=folder_root).setup("fit")


def test_the_seed_decides_the_order():
    orders = []
    for seed in (0, 1):
        data = SyntheticDataModule(samples=90, slides=45, image_size=32)
        data.plan = LoadingPlan(seed=seed)
        data.setup("fit")
        orders.append([b.positions.tolist() for b in batches(data.train_dataloader())])
    assert orders[0] != orders[1]


@pytest.mark.shared
def test_the_real_hpv_cells():
    data = HPVDataModule(root=SHARED / "hpv", view="masked", image_size=96)
    data.setup("fit")
    assert np.bincount(data.table.labels).tolist() == [176, 53, 48, 22]
    groups = data.table.groups()
    pairs = {s.id[-7:-4]: g for s, g in zip(data.table.samples, groups, strict=True)}
    assert pairs["112"] == pairs["139"]
    assert pairs["166"] == pairs["171"]
    assert pairs["157"] == pairs["158"]
    assert len(set(groups)) == 299 - 14
    assert data.images.pixels.masks.max() == 2
    # stained nuclei are darkest in red and green: BGR read as RGB would turn this round
    nuclei = data.images.pixels.images[data.images.pixels.masks == 2].mean(axis=0)
    assert nuclei[1] == nuclei.min()


def test_a_table_with_holes_or_wrong_paths_is_refused(folder_root):
    table = folder_root / "t.csv"
    images = [p.relative_to(folder_root) for p in sorted(folder_root.glob("[bn]*/*.jpg"))]
    whole = "path,label,group\n" + "".join(f"{p},{p.parent},g{i}\n" for i, p in enumerate(images))

    def fails(text, message):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            _ = FolderDataModule(root=folder_root, csv="t.csv").table

    fails(whole.replace(",g7\n", ",\n"), r"has no group and others have one; fill it in")
    fails(
        whole.replace("0 (0).jpg", "0 (9).jpg"), r"t\.csv lists 'blast/.*0 \(9\)\.jpg'.* but there"
    )
    with pytest.raises(
        UserError, match=r"there is no table .*u\.csv; its path is below data\.root"
    ):
        _ = FolderDataModule(root=folder_root, csv="u.csv").table


def test_an_image_bomb_is_one_line(folder_root, fails):
    """A PNG of 60,000 x 60,000 pixels in 100 bytes: 10 GB if it were unpacked."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data
        png += struct.pack(">I", zlib.crc32(kind + data))
    (folder_root / "blast" / "bomb.png").write_bytes(png)
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}")
    assert line.startswith("cannot read ")
    assert "blast/bomb.png: it has 60,000 x 60,000 pixels" in line
    assert "--data.exclude \"['blast/bomb.png']\"" in line


def test_loops_of_symbolic_links_end(folder_root, fails):
    (folder_root / "blast" / "again").symlink_to(folder_root, target_is_directory=True)
    assert len(FolderDataModule(root=folder_root).table) == 40
    (folder_root / "blast" / "self.jpg").symlink_to("self.jpg")
    line = fails("fit", "--data=FolderDataModule", f"--data.root={folder_root}")
    assert line.startswith(f"cannot read {folder_root}/blast/self.jpg: Too many levels")


def test_names_in_any_unicode(tmp_path, fit):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("für", "細胞 🦠")):
        for i in range(12):
            path = tmp_path / "cells" / name / f"é{i} [x].png"
            write_image(path, draw_cell(rng, 2 * label, 48)[0])
    run = fit("--data=FolderDataModule", f"--data.root={tmp_path / 'cells'}")
    text = (run / "predictions.csv").read_text(encoding="utf-8")
    assert "p_für,p_細胞 🦠" in text.splitlines()[0]
    assert "細胞 🦠/é" in text


def test_help_describes_each_option_by_the_docstring_below_it(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--data.help", "SyntheticDataModule"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Largest number of images in a step, on all devices together. (type: int" in shown
    assert "Number of slides that they come from. (type: int" in shown
    assert "Share of the samples outside the test set that are for validation." in shown
