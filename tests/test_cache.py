"""Every image is decoded once for all runs, and no pixel is ever stale."""

import errno
import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest

from cellbench.__main__ import main
from cellbench.data.cache import CacheConfig
from cellbench.data.datasets.folder import FolderDataModule
from cellbench.utils import atomic
from tests.conftest import QUICK, draw_cell, write_image


def module(root, folder, memory=0, **arguments):
    return FolderDataModule(
        root=root, image_size=32, cache=CacheConfig(memory, folder), **arguments
    )


def pixels(data):
    data.setup("fit")
    return data.images.pixels


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("view", ["raw", "masked", "crop"])
def test_the_file_holds_what_memory_holds(folder_root, folder, view):
    kept = pixels(module(folder_root, folder, 64, view=view))
    assert not folder.exists()
    mapped = pixels(module(folder_root, folder, view=view))
    assert isinstance(mapped.images, np.memmap)
    assert np.array_equal(kept.images, mapped.images)
    assert (kept.masks is None) == (mapped.masks is None) == (view == "raw")
    assert kept.masks is None or np.array_equal(kept.masks, mapped.masks)


def test_images_are_decoded_once_for_all_runs(folder_root, folder, monkeypatch):
    first = pixels(module(folder_root, folder, view="masked"))
    monkeypatch.setattr(FolderDataModule, "read_image", None)
    for other in ("masked", "background", "silhouette"):
        again = pixels(module(folder_root, folder, view=other))
        assert np.array_equal(first.images, again.images)
    assert len(list(folder.glob("*.pixels"))) == 1


def test_a_changed_image_mask_size_or_crop_is_read_anew(folder_root, folder):
    before = pixels(module(folder_root, folder, view="masked"))
    image, mask = draw_cell(np.random.default_rng(9), 3, 48)
    write_image(folder_root / "blast" / "0 (0).jpg", image)
    changed = pixels(module(folder_root, folder, view="masked"))
    assert not np.array_equal(before.images[0], changed.images[0])
    assert np.array_equal(before.images[1:], changed.images[1:])
    write_image(folder_root / "masks" / "blast" / "0 (0).png", mask.T)
    assert not np.array_equal(
        changed.masks[0], pixels(module(folder_root, folder, view="masked")).masks[0]
    )
    cropped = pixels(module(folder_root, folder, view="crop"))
    assert not np.array_equal(changed.images[0], cropped.images[0])
    assert len(list(folder.glob("*.pixels"))) == 4


@pytest.mark.parametrize("view", ["raw", "masked"])
def test_a_mapped_file_is_not_copied_to_loader_processes(folder_root, folder, view):
    mapped = pixels(module(folder_root, folder, view=view))
    text = pickle.dumps(mapped)
    assert len(text) < 1000 < mapped.images.nbytes
    again = pickle.loads(text)
    assert isinstance(again.images, np.memmap)
    assert np.array_equal(again.images, mapped.images)
    assert view == "raw" or np.array_equal(again.masks, mapped.masks)
    kept = pickle.loads(pickle.dumps(pixels(module(folder_root, folder, 64, view=view))))
    assert np.array_equal(kept.images, mapped.images)


@pytest.mark.parametrize("length", [0, 1000])
def test_a_file_cut_short_is_written_anew(folder_root, folder, length):
    expected = np.array(pixels(module(folder_root, folder)).images)
    (path,) = folder.glob("*.pixels")
    os.truncate(path, length)
    assert np.array_equal(pixels(module(folder_root, folder)).images, expected)


def build(root, folder, barrier, queue):
    barrier.wait()
    queue.put(int(pixels(module(root, folder)).images.sum(dtype=np.int64)))


def test_several_processes_build_one_file(folder_root, folder):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=build, args=(folder_root, folder, barrier, queue)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    sums = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert set(sums) == {int(pixels(module(folder_root, folder, 64)).images.sum(dtype=np.int64))}
    assert len(list(folder.glob("*.pixels"))) == 1
    assert not list(folder.glob(".*.part"))


def test_what_a_killed_process_left_is_removed(folder_root, folder):
    expected = np.array(pixels(module(folder_root, folder)).images)
    (path,) = folder.glob("*.pixels")
    left = path.with_name(f".{path.name}.123.part")
    path.rename(left)
    assert np.array_equal(pixels(module(folder_root, folder)).images, expected)
    assert not left.exists()


def fit_with(root, folder):
    return [
        *["fit", "--data=FolderDataModule", f"--data.root={root}", *QUICK, "--name=x"],
        *["--data.cache.memory=0", f"--data.cache.folder={folder}", f"--runs={folder}-runs"],
    ]


def test_a_folder_that_cannot_be_is_said_in_one_line(folder_root, tmp_path, fails):
    file = tmp_path / "file"
    file.write_text("")
    line = fails(*fit_with(folder_root, file / "cache"))
    assert line.startswith("data.cache.folder: cannot keep 0 MiB in")
    assert "Not a directory; give another folder, or a data.cache.memory" in line


@pytest.mark.parametrize("when", ["before", "meanwhile", "short"])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(
    folder_root, tmp_path, fails, monkeypatch, when
):
    usage = namedtuple("usage", "total used free")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    else:
        monkeypatch.setattr(atomic.os, "pwrite", full if when == "meanwhile" else lambda *args: 7)
    folder = tmp_path / "cache"
    assert "No space left on device" in fails(*fit_with(folder_root, folder))
    assert not [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_a_run_from_the_file_is_a_run_from_memory(folder_root, tmp_path):
    for name, memory in (("memory", 64), ("file", 0)):
        options = [f"--data.root={folder_root}", f"--runs={tmp_path}", f"--name={name}"]
        cache = [f"--data.cache.memory={memory}", f"--data.cache.folder={tmp_path / 'cache'}"]
        split = ["--data.augment=strong", "--data.num_workers=2" if memory else "--data.fill=0"]
        assert main(["fit", "--data=FolderDataModule", *QUICK, *options, *cache, *split]) == 0
    texts = {path.read_text() for path in tmp_path.glob("*/*/predictions.csv")}
    assert len(texts) == 1
