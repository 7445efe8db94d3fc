"""Datasets are fetched whole or not at all, and what is fetched is what was published."""

import errno
import hashlib
import inspect
import io
import os
import shutil
import signal
import sys
import tarfile
import threading
import zipfile
from collections import Counter, namedtuple
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import numpy as np
import pytest
from filelock import FileLock

from cellbench.__main__ import main
from cellbench.data.datasets.hpv import HPVDataModule
from cellbench.data.download import transfer
from cellbench.data.download.transfer import GitHub
from cellbench.utils import atomic
from tests.conftest import SHARED, draw_cell, write_image

REPOSITORY, COMMIT = "zxaoyou/segmentation_WBC", "fa9c016"
IMAGE = "Dataset 1/001.bmp"


def files_of(root):
    """The content of every file below a folder, by path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def left(folder):
    """What lies in a folder, but for the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@dataclass
class Upstream:
    """A server, and what it is to do wrong with the next requests for a file."""

    files: dict[str, bytes]
    wrong: dict[str, list[str]] = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, request):
        owner, repository, commit, path = unquote(request.path)[1:].split("/", 3)
        assert (f"{owner}/{repository}", commit) == (REPOSITORY, COMMIT)
        self.asked[path] += 1
        todo = self.wrong.get(path)
        fault = todo.pop(0) if todo else ""
        content = self.files[path]
        if fault.isdigit():
            return request.send_error(int(fault))
        if fault == "silent":
            return self.over.wait(5)
        if fault == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "changed":
            content = bytes([content[0] ^ 1]) + content[1:]
        request.wfile.write(content[:100] if fault == "broken" else content)
        return None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The files of an hpv set of 20 small cells."""
    root, rng = tmp_path_factory.mktemp("hpv"), np.random.default_rng(0)
    rows = ["image ID,class label"]
    for number in range(1, 21):
        image, mask = draw_cell(rng, number % 4, 40)
        write_image(root / "Dataset 1" / f"{number:03d}.bmp", image)
        write_image(root / "Dataset 1" / f"{number:03d}.png", mask)
        rows.append(f"{number},{number % 4 + 1}")
    (root / "Class Labels of Dataset 1.csv").write_text("\r\n".join(rows))
    return files_of(root)


@pytest.fixture
def upstream(drawn, tmp_path, monkeypatch):
    """These files on a server, which the data module takes for GitHub."""
    served = Upstream(dict(drawn))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.answer(self)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # else a ninth connection waits for a second

    sums = tmp_path / "hpv.sha256"
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in served.files.items()}
    sums.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        source = GitHub(
            licence="GPL-3",
            repository=REPOSITORY,
            commit=COMMIT,
            checksums=sums,
            host=f"http://127.0.0.1:{server.server_port}",
        )
        monkeypatch.setattr(HPVDataModule, "source", source)
        monkeypatch.setattr(transfer, "PAUSES_S", (0.01, 0.01))
        yield served
        served.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def to(tmp_path):
    return tmp_path / "fetched" / "hpv"


def test_the_checksums_are_those_of_the_whole_set():
    names = ["Class Labels of Dataset 1.csv"]
    names += [f"Dataset 1/{n:03d}.{suffix}" for n in range(1, 301) for suffix in ("bmp", "png")]
    assert HPVDataModule.source.repository == REPOSITORY
    assert HPVDataModule.source.commit == COMMIT
    assert list(HPVDataModule.source.digests) == names
    assert all(len(digest) == 64 for digest in HPVDataModule.source.digests.values())


@pytest.mark.shared
def test_the_real_files_have_the_checksums(capsys):
    assert HPVDataModule.source.missing(SHARED / "hpv") == []


def test_a_whole_fetch(upstream, to, capsys):
    assert main(["fetch", "hpv", f"--to={to}"]) == 0
    assert files_of(to) == upstream.files
    assert upstream.asked == Counter(upstream.files.keys())
    assert left(to.parent) == ["hpv"]
    assert capsys.readouterr().out.splitlines() == [
        f"hpv: 20 images in {to}: 5 neutrophil, 5 lymphocyte, 5 monocyte, 5 eosinophil",
        "not the published set: neutrophil 5 of 176, lymphocyte 5 of 53, monocyte 5 of 48, "
        "eosinophil 5 of 22",
        "Licence: GPL-3",
        f"Next: python -m cellbench fit --data HPVDataModule --data.root {to}",
    ]


def test_it_goes_where_the_data_module_looks(upstream, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", "hpv"]) == 0
    assert files_of(tmp_path / "data" / "hpv") == upstream.files
    assert capsys.readouterr().out.endswith("fit --data HPVDataModule\n")


def test_what_is_there_is_not_downloaded_again(upstream, to):
    assert main(["fetch", "hpv", f"--to={to}"]) == 0
    (to / IMAGE).unlink()
    upstream.asked.clear()
    assert main(["fetch", "hpv", f"--to={to}"]) == 0
    assert upstream.asked == {IMAGE: 1}
    assert files_of(to) == upstream.files


def test_after_an_interruption_only_the_missing_files_are_downloaded(upstream, to, capsys):
    upstream.wrong["Dataset 1/009.bmp"] = ["Ctrl-C"]
    assert main(["fetch", "hpv", f"--to={to}"]) == 130
    assert capsys.readouterr().err == "cellbench: SIGINT; give the same command to go on\n"
    kept = files_of(to)
    assert 0 < len(kept) < len(upstream.files)
    assert all(upstream.files[name] == content for name, content in kept.items())
    upstream.asked.clear()
    assert main(["fetch", "hpv", f"--to={to}"]) == 0
    assert upstream.asked == Counter(upstream.files.keys() - kept.keys())
    assert files_of(to) == upstream.files


@pytest.mark.parametrize("fault", ["broken", "500", "429", "silent"])
def test_a_transfer_that_breaks_is_tried_again(upstream, to, monkeypatch, fault):
    monkeypatch.setattr(transfer, "_TIMEOUT_S", 0.2)
    upstream.wrong[IMAGE] = [fault, fault]
    assert main(["fetch", "hpv", f"--to={to}"]) == 0
    assert upstream.asked[IMAGE] == 3
    assert files_of(to) == upstream.files


@pytest.mark.parametrize(
    ("fault", "tries", "why"),
    [
        ("broken", 3, "IncompleteRead(100 bytes read, "),
        ("500", 3, "HTTP Error 500: Internal Server Error"),
        ("404", 1, "HTTP Error 404: Not Found"),
        ("silent", 3, "timed out"),
    ],
)
def test_a_server_that_does_not_give_a_file(upstream, to, fails, monkeypatch, fault, tries, why):
    monkeypatch.setattr(transfer, "_TIMEOUT_S", 0.2)
    upstream.wrong[IMAGE] = [fault] * 9
    line = fails("fetch", "hpv", f"--to={to}")
    assert "cannot download http://127.0.0.1:" in line
    assert f"/{REPOSITORY}/{COMMIT}/Dataset%201/001.bmp: " in line
    assert why in line
    assert "give the same command again" in line
    assert upstream.asked[IMAGE] == tries
    assert IMAGE not in files_of(to)
    assert files_of(to).items() <= upstream.files.items()


def test_no_server(upstream, to, fails, monkeypatch):
    source = HPVDataModule.source
    elsewhere = GitHub(**(vars(source) | {"host": "http://127.0.0.1:9"}))
    monkeypatch.setattr(HPVDataModule, "source", elsewhere)
    assert "[Errno 111] Connection refused; " in fails("fetch", "hpv", f"--to={to}")
    assert not to.exists()


def test_a_changed_file_is_refused(upstream, to, fails):
    upstream.wrong[IMAGE] = ["changed"]
    line = fails("fetch", "hpv", f"--to={to}")
    expected = hashlib.sha256(upstream.files[IMAGE]).hexdigest()
    assert "001.bmp is not the published file: its SHA-256 is " in line
    assert f"expected {expected[:12]}…; it was changed or cut short on the way" in line
    assert IMAGE not in files_of(to)


def test_a_file_of_another_content_is_not_overwritten(upstream, to, fails):
    (to / IMAGE).parent.mkdir(parents=True)
    (to / IMAGE).write_bytes(b"mine")
    line = fails("fetch", "hpv", f"--to={to}")
    assert f"{to / IMAGE} is not the published file" in line
    assert hashlib.sha256(b"mine").hexdigest()[:12] in line
    assert hashlib.sha256(upstream.files[IMAGE]).hexdigest()[:12] in line
    assert files_of(to) == {IMAGE: b"mine"}
    assert not upstream.asked


def test_a_folder_that_cannot_be_written(upstream, tmp_path, fails):
    (tmp_path / "file").write_text("")
    line = fails("fetch", "hpv", f"--to={tmp_path / 'file' / 'hpv'}")
    assert f"cannot write {tmp_path / 'file'}: " in line
    assert "give another folder as --to" in line


def test_a_full_disk(upstream, to, fails, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    assert f"cannot write {to}: No space left on device" in fails("fetch", "hpv", f"--to={to}")
    assert files_of(to) == {}


def test_two_fetches_do_not_disturb_each_other(upstream, to, fails):
    to.parent.mkdir()
    with FileLock(to.with_name(".hpv.lock")):
        assert "another fetch is at work there" in fails("fetch", "hpv", f"--to={to}")
    assert not upstream.asked


# Archives.


def pack(path, files, prefix=""):
    """Writes a .zip or a .tar (.gz) of files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(prefix + name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            for name, content in files.items():
                add(file, prefix + name, content)
    return path


def add(file, name, content=b"", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in attributes.items():
        setattr(member, key, value)
    file.addfile(member, io.BytesIO(content))


@pytest.fixture(params=["set.zip", "set.tar", "set.tar.gz"])
def archive(request, upstream, tmp_path):
    return pack(tmp_path / request.param, upstream.files)


def test_an_archive_is_unpacked(archive, upstream, to, capsys):
    assert main(["fetch", "hpv", f"--to={to}", f"--archive={archive}"]) == 0
    assert files_of(to) == upstream.files
    assert left(to.parent) == ["hpv"]
    assert not upstream.asked
    assert f"hpv: 20 images in {to}: 5 neutrophil" in capsys.readouterr().out


@pytest.mark.parametrize("length", [0, 300, 0.5, 0.9, -1])
def test_a_truncated_archive(archive, to, fails, length):
    size = archive.stat().st_size
    length = int(size * length) if isinstance(length, float) else length
    os.truncate(
        archive, length if length >= 0 else size - (30000 if archive.suffix == ".tar" else 1)
    )
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert line.startswith(f"cannot unpack {archive}: ")
    assert line.endswith("; download it again")
    assert left(to.parent) == []


def test_a_damaged_archive(archive, to, fails):
    """A changed byte in the middle: in a .tar, the checksums of the files tell."""
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert str(archive) in fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert left(to.parent) == []


def test_a_folder_around_the_dataset_is_left_out(upstream, tmp_path, to):
    archive = pack(tmp_path / "set.zip", upstream.files, f"segmentation_WBC-{COMMIT}/")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/._x", "")
    assert main(["fetch", "hpv", f"--to={to}", f"--archive={archive}"]) == 0
    assert files_of(to) == upstream.files


def test_names_in_unicode_of_windows_and_such_as_differ_by_case(upstream, tmp_path, to):
    more = {"Zellen/für 細胞 🦠/é.txt": b"1", "Zellen/ReadMe": b"2", "Zellen/README": b"3"}
    for name in ("set.zip", "set.tar.gz"):
        archive = pack(tmp_path / name, upstream.files | more)
        assert main(["fetch", "hpv", f"--to={to}", f"--archive={archive}"]) == 0
        assert files_of(to) == upstream.files | more
        shutil.rmtree(to)
    archive = pack(tmp_path / "windows.zip", {"Dataset 1\\": b""})
    with zipfile.ZipFile(archive, "a") as file:
        for name, content in upstream.files.items():
            file.writestr(name.replace("/", "\\"), content)
    assert main(["fetch", "hpv", f"--to={to}", f"--archive={archive}"]) == 0
    assert files_of(to) == upstream.files


def test_another_archive_writes_nothing(upstream, tmp_path, to, fails):
    del upstream.files[IMAGE]
    archive = pack(tmp_path / "set.zip", upstream.files, "x/")
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert "set.zip/x" in line
    assert line.endswith("001.bmp is missing")
    changed = upstream.files | {IMAGE: b"changed"}
    archive = pack(tmp_path / "set.zip", changed, "x/")
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert f"{archive}/x/{IMAGE} is not the published file" in line
    assert left(to.parent) == []


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "C:evil", "\\\\h\\s\\e"],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_cannot_write_outside(upstream, tmp_path, to, fails, name, kind):
    archive = pack(tmp_path / f"set.{kind}", upstream.files | {name: b"evil"})
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert line == f"{archive} reaches out of its folder: {name!r}; do not use it"
    assert left(to.parent) == []
    assert left(tmp_path) == ["fetched", "hpv.sha256", archive.name]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_a_tar_with_a_link_or_device_is_refused(upstream, tmp_path, to, fails, kind):
    archive = tmp_path / "set.tar"
    with tarfile.open(archive, "w") as file:
        for name, content in upstream.files.items():
            add(file, name, content)
        add(file, "Dataset 1/999.bmp", type=kind, linkname="/etc/passwd")
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert line == f"{archive} holds a link or device: 'Dataset 1/999.bmp'; do not use it"
    assert left(to.parent) == []


def test_a_zip_with_a_symlink_is_refused(upstream, tmp_path, to, fails):
    archive = pack(tmp_path / "set.zip", upstream.files)
    link = zipfile.ZipInfo("Dataset 1/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "/etc/passwd")
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert line == f"{archive} holds a link or device: 'Dataset 1/link'; do not use it"
    assert left(to.parent) == []


def test_a_bomb_is_refused(tmp_path, to, fails):
    for name in ("bomb.zip", "bomb.tar.gz"):
        archive = pack(tmp_path / name, {"zeros": bytes(20 << 20)})
        line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
        assert line == f"{archive} unpacks to over 100 times its size; do not use it"
        assert left(to.parent) == []


def test_an_archive_for_which_there_is_no_room(archive, to, fails, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert f"cannot write {to}: No space left on device" in line
    assert left(to.parent) == []


def test_an_archive_with_a_password(upstream, tmp_path, to, fails):
    archive = pack(tmp_path / "set.zip", upstream.files)
    data = archive.read_bytes()
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.index(signature) + offset
        data = data[:at] + bytes([data[at] | 1]) + data[at + 1 :]
    archive.write_bytes(data)
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert "is encrypted, password required" in line
    assert left(to.parent) == []


def test_a_folder_that_is_not_empty_is_left_alone(archive, to, fails):
    to.mkdir(parents=True)
    assert main(["fetch", "hpv", f"--to={to}", f"--archive={archive}"]) == 0
    before = files_of(to)
    line = fails("fetch", "hpv", f"--to={to}", f"--archive={archive}")
    assert line == f"{to} is there already; remove it, or give another folder as --to"
    assert files_of(to) == before


def test_no_archive(fails):
    assert (
        fails("fetch", "hpv", "--archive=nowhere.zip") == "--archive: there is no file nowhere.zip"
    )


# The other datasets.


def test_the_list_of_datasets(capsys):
    assert main(["fetch"]) == 0
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    assert capsys.readouterr().out == shown
    lines = shown.splitlines()
    assert lines[0].startswith("usage: python -m cellbench fetch")
    listed = [line.split()[0] for line in lines[lines.index("datasets, with their licence:") + 1 :]]
    names = ["blood_cells", "chaoyang", "fluorescence_demo", "hpv", "hpv_slides", "leukemia"]
    assert listed == [*names, "wbc9"]
    assert "  leukemia           see Kaggle      Peripheral blood smears with acute" in "\n".join(
        lines
    )


def test_an_unknown_dataset(fails):
    assert fails("fetch", "leukaemia") == "unknown dataset 'leukaemia'; closest: leukemia"
    assert "unknown dataset 'synthetic'; allowed: " in fails("fetch", "synthetic")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("wbc9", ["ask its owners", "Licence: private", "`wbc/<class>/<name>.<ext>`"]),
        ("hpv_slides", ["`glass3.hdf5`", "not public", "Licence: private"]),
        ("chaoyang", ["github.com/bupt-ai-cz/HSA-NRL", "Licence: non-commercial"]),
    ],
)
def test_what_cannot_be_downloaded_is_explained(name, facts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", name]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{name} cannot be downloaded.\n")
    for fact in [*facts, f"Put it at data/{name};", f"fetch {name} --archive FILE\n"]:
        assert fact in out
    assert left(tmp_path) == []


def test_an_archive_of_a_private_dataset(wbc9_root, tmp_path, capsys):
    archive, to = pack(tmp_path / "set.zip", files_of(wbc9_root)), tmp_path / "to"
    assert main(["fetch", "wbc9", f"--to={to}", f"--archive={archive}"]) == 0
    assert files_of(to) == files_of(wbc9_root)
    assert f"wbc9: 72 images in {to}: 8 bands, 8 basophils, " in capsys.readouterr().out


@pytest.fixture
def kagglehub(monkeypatch):
    """Stands in for the package; a test gives it its `dataset_download`."""
    module = ModuleType("kagglehub")
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setenv("KAGGLEHUB_CACHE", "")  # restored afterwards
    return module


def test_kaggle(leukemia_root, tmp_path, kagglehub, capsys):
    expected, to = files_of(leukemia_root), tmp_path / "to" / "leukemia"

    def dataset_download(handle):
        owner, name = handle.split("/")
        path = Path(os.environ["KAGGLEHUB_CACHE"], "datasets", owner, name, "versions", "2")
        shutil.copytree(leukemia_root, path)
        (path.parents[1] / "2.complete").touch()
        assert handle == "mohammadamireshraghi/blood-cell-cancer-all-4class"
        return str(path)

    kagglehub.dataset_download = dataset_download
    assert main(["fetch", "leukemia", f"--to={to}"]) == 0
    assert files_of(to) == expected
    assert left(to.parent) == ["leukemia"]
    assert f"leukemia: 52 images in {to}: 13 benign, " in capsys.readouterr().out


def test_kaggle_that_breaks_is_gone_on_with(leukemia_root, tmp_path, kagglehub, fails):
    to = tmp_path / "to" / "leukemia"

    def breaks(handle):
        part = Path(os.environ["KAGGLEHUB_CACHE"], "2.archive")
        part.parent.mkdir()
        part.write_text("half")
        raise ConnectionError("Failed to resolve\n'api.kaggle.com'")

    kagglehub.dataset_download = breaks
    line = fails("fetch", "leukemia", f"--to={to}")
    assert "class from Kaggle: Failed to resolve 'api.kaggle.com'; check the network" in line
    assert "give the file as --archive" in line
    assert not to.exists()

    def goes_on(handle):
        part = Path(os.environ["KAGGLEHUB_CACHE"], "2.archive")
        assert part.read_text() == "half"
        return shutil.copytree(leukemia_root, part.with_name("2"))

    kagglehub.dataset_download = goes_on
    assert main(["fetch", "leukemia", f"--to={to}"]) == 0
    assert left(to.parent) == ["leukemia"]


def test_a_notebook_of_kaggle_has_the_dataset_already(leukemia_root, tmp_path, kagglehub, capsys):
    kagglehub.dataset_download = lambda handle: str(leukemia_root)
    assert main(["fetch", "leukemia", f"--to={tmp_path / 'to'}"]) == 0
    command = "python -m cellbench fit --data LeukemiaDataModule"
    assert f"Next: {command} --data.root {leukemia_root}\n" in capsys.readouterr().out
    assert left(tmp_path) == ["leukemia"]


def test_kaggle_without_its_package(tmp_path, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    monkeypatch.setenv("KAGGLEHUB_CACHE", "")
    line = fails("fetch", "blood_cells", f"--to={tmp_path / 'to'}")
    assert line.startswith('Kaggle needs kagglehub: pip install "cellbench[kaggle]"; or download ')
    assert "https://www.kaggle.com/datasets/paultimothymooney/blood-cells in a browser" in line


def test_kaggle_does_not_touch_a_folder_that_is_not_empty(leukemia_root, kagglehub, fails):
    before = files_of(leukemia_root)
    assert "is there already; remove it" in fails("fetch", "leukemia", f"--to={leukemia_root}")
    assert files_of(leukemia_root) == before


def test_the_real_kagglehub_takes_a_handle_alone():
    kagglehub = pytest.importorskip("kagglehub")
    first, *others = inspect.signature(kagglehub.dataset_download).parameters.values()
    assert first.name == "handle"
    assert all(parameter.default is not inspect.Parameter.empty for parameter in others)
    assert inspect.signature(kagglehub.dataset_download).return_annotation is str
    config = pytest.importorskip("kagglehub.config")
    assert config.CACHE_FOLDER_ENV_VAR_NAME == "KAGGLEHUB_CACHE"
