"""Writing without leaving half a file, and without replacing what is precious."""

import os
from pathlib import Path

import pytest

from scumble.errors import OutputError, OutputExistsError
from scumble.files import new_folder, refuse_existing, write_text


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_appears_whole(tmp_path):
    goal = tmp_path / "a" / "b"
    with new_folder(goal) as temporary:
        (temporary / "x").write_text("x")
        assert not goal.exists()
        assert temporary.parent == goal.parent  # one file system, so that the rename is one step
    assert everything(tmp_path) == ["a", "a/b", "a/b/x"]
    assert goal.stat().st_mode & 0o777 == 0o755


def fail_within(path: Path, error: BaseException, *, force: bool = False) -> None:
    with new_folder(path, force=force) as temporary:
        (temporary / "new").write_text("new")
        raise error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("no"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OutputError),
    ],
)
def test_a_failure_leaves_nothing(tmp_path, error, raised):
    with pytest.raises(raised):
        fail_within(tmp_path / "a/b/c", error)
    assert everything(tmp_path) == []


def test_a_failure_keeps_folders_that_were_there(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a/b/c"):
        raise RuntimeError
    assert everything(tmp_path) == ["a"]


def test_a_failure_with_force_keeps_the_old_folder(tmp_path):
    goal = tmp_path / "a"
    goal.mkdir()
    (goal / "old").write_text("old")
    with pytest.raises(RuntimeError, match="no"):
        fail_within(goal, RuntimeError("no"), force=True)
    assert everything(tmp_path) == ["a", "a/old"]


def test_force_replaces_the_old_folder_whole(tmp_path):
    goal = tmp_path / "a"
    goal.mkdir()
    (goal / "old").write_text("old")
    with new_folder(goal, force=True) as temporary:
        (temporary / "new").write_text("new")
    assert everything(tmp_path) == ["a", "a/new"]


def test_a_rename_that_fails_gives_the_old_folder_back(tmp_path, monkeypatch):
    goal = tmp_path / "a"
    goal.mkdir()
    (goal / "old").write_text("old")
    rename = Path.rename

    def broken(self, to):
        if self.name.startswith(".a.") and "old-" not in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OutputError, match="Input/output error"), new_folder(goal, force=True):
        pass
    assert everything(tmp_path) == ["a", "a/old"]


def test_safetensors_own_error_for_a_full_disk_is_ours(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_link_is_replaced_and_its_goal_kept(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("mine")
    (tmp_path / "a").symlink_to("kept")
    with new_folder(tmp_path / "a", force=True):
        pass
    assert everything(tmp_path) == ["a", "kept", "kept/mine"]
    assert not (tmp_path / "a").is_symlink()


def test_a_link_to_nothing_exists_too(tmp_path):
    (tmp_path / "a").symlink_to("nothing")
    with pytest.raises(OutputExistsError):
        refuse_existing(tmp_path / "a")


def test_a_free_path_is_given_back(tmp_path):
    assert refuse_existing(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert refuse_existing("~/nothing-is-called-that") == Path.home() / "nothing-is-called-that"


def test_what_exists_needs_force(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputExistsError) as refused:
        refuse_existing(tmp_path / "a")
    assert isinstance(refused.value, FileExistsError)
    assert "--force" in refused.value.hint
    assert refuse_existing(tmp_path / "a", force=True) == tmp_path / "a"


def test_a_file_and_a_folder_never_replace_each_other(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputExistsError, match="is a file, not a folder"):
        refuse_existing(tmp_path / "file", force=True)
    with pytest.raises(OutputExistsError, match="is a folder, not a file"):
        refuse_existing(tmp_path / "folder", force=True, file=True)
    assert refuse_existing(tmp_path / "file", force=True, file=True) == tmp_path / "file"


@pytest.mark.parametrize("text", [".", "..", "", "/", "~", "../here", "sub/.."])
def test_folders_that_one_stands_in_are_never_replaced(tmp_path, monkeypatch, text):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputExistsError, match="is not replaced") as refused:
        refuse_existing(text, force=True)
    assert "--force" not in refused.value.hint


def test_what_is_read_is_never_replaced(tmp_path):
    (tmp_path / "project").mkdir()
    data = tmp_path / "project" / "data.jsonl"
    data.write_text("{}")
    for given in (data, str(data), tmp_path / "project"):
        with pytest.raises(OutputExistsError, match="which is read"):
            refuse_existing(tmp_path / "project", force=True, inputs=[None, 0.1, "cron", given])
    assert refuse_existing(tmp_path / "other", force=True, inputs=[data]) == tmp_path / "other"


def test_a_path_within_a_file_is_refused_and_the_option_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file is not a folder") as refused:
        refuse_existing(tmp_path / "file" / "a" / "b", option="--html")
    assert refused.value.hint == "choose another --html"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="no permission"):
        refuse_existing(tmp_path / "closed" / "a")


def test_a_folder_that_may_not_be_written_to_as_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setattr("scumble.files.os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write in"):
        refuse_existing(tmp_path / "a")


def test_text_is_written_whole_or_not_at_all(tmp_path):
    assert write_text(tmp_path / "a" / "x", "é") == tmp_path / "a" / "x"
    assert (tmp_path / "a" / "x").read_bytes() == "é".encode()
    write_text(tmp_path / "a" / "x", "new")
    assert everything(tmp_path) == ["a", "a/x"]


def test_half_a_surrogate_pair_is_a_question_mark(tmp_path):
    assert write_text(tmp_path / "x", "a\ud800b").read_text() == "a?b"


def test_text_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="folder cannot be written"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "file" / "x", "x")
    assert everything(tmp_path) == ["file", "folder"]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "x", "x")
    assert everything(tmp_path) == ["file", "folder"]
