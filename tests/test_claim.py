"""A run's folder: which one a command gets, and that no other process gets it too."""

import errno

import pytest
from filelock import FileLock

from cellbench.artifacts.folder import RunFolder, as_yaml
from cellbench.training import claim
from cellbench.training.claim import Claim, Destination
from cellbench.utils.errors import CannotWrite, OtherRun, UserError

CONFIG = {"model": {"lr": 0.1}}


@pytest.fixture
def begun(tmp_path):
    """Makes an unfinished run below tmp_path/name."""

    def make(name, config=CONFIG):
        path = tmp_path / "name" / name
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(as_yaml(config))
        return RunFolder(path)

    return make


def acquire(tmp_path, **to):
    return Claim.acquire(Destination(**to), tmp_path / "name", CONFIG)


def test_a_new_folder_is_locked_and_goes_if_the_run_cannot_begin(tmp_path):
    claim = acquire(tmp_path)
    assert claim.fresh
    assert claim.folder.path.parent == tmp_path / "name"
    assert claim.folder.lock.is_file()
    claim.abandon()
    assert not (tmp_path / "name").exists()


def test_auto_takes_the_newest_unfinished_run_of_the_configuration(tmp_path, begun):
    begun("1")
    wanted = begun("2")
    begun("3", {"model": {"lr": 0.2}})
    (begun("4").metrics).write_text("{}")
    held = begun("5")
    with FileLock(held.lock):
        claim = acquire(tmp_path, resume="auto")
    assert (claim.folder, claim.fresh) == (wanted, False)
    claim.abandon()
    assert wanted.config.is_file()
    assert not wanted.lock.exists()


def test_auto_begins_where_there_is_no_such_run(tmp_path, begun, capsys):
    begun("1", {"model": {"lr": 0.2}})
    claim = acquire(tmp_path, resume="auto")
    assert claim.fresh
    assert "no unfinished run of this configuration; a new one begins" in capsys.readouterr().out
    claim.release()


def test_a_run_that_is_open_is_not_resumed(tmp_path, begun):
    run = begun("1")
    claim = acquire(tmp_path, resume=run)
    with pytest.raises(UserError, match=r"--resume: another process has the run .* open"):
        acquire(tmp_path, resume=run)
    claim.release()
    acquire(tmp_path, resume=run).release()


def test_a_given_folder_is_claimed_for_its_own_run_alone(tmp_path, begun):
    new = acquire(tmp_path, folder=RunFolder(tmp_path / "own"))
    assert new.fresh
    new.release()
    own = begun("1")
    again = acquire(tmp_path, folder=own)
    assert not again.fresh
    again.release()
    with pytest.raises(OtherRun, match="has another configuration"):
        acquire(tmp_path, folder=begun("2", {"model": {"lr": 0.2}}))
    own.metrics.write_text("{}")
    with pytest.raises(UserError, match="is finished; give another folder"):
        acquire(tmp_path, folder=own)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no run, but note\.txt"):
        acquire(tmp_path, folder=RunFolder(tmp_path / "else"))
    assert [path.name for path in (tmp_path / "else").iterdir()] == ["note.txt"]


def test_a_folder_of_other_things_gets_no_lock(tmp_path, monkeypatch):
    (tmp_path / "note.txt").write_text("mine")
    locked = []
    monkeypatch.setattr(claim, "FileLock", lambda path: locked.append(path))
    with pytest.raises(UserError, match=r"holds no run, but note\.txt"):
        acquire(tmp_path, folder=RunFolder(tmp_path))
    assert locked == []


def test_a_file_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(CannotWrite, match="it is a file; give another"):
        acquire(tmp_path, folder=RunFolder(tmp_path / "note.txt"))


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted", self.lock_file)

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(CannotWrite, match=r"cannot write .*\.lock: Operation not permitted"):
        acquire(tmp_path, folder=RunFolder(tmp_path / "new"))
