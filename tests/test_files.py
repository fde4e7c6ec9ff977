import os
from pathlib import Path

import pytest

from frcnn.files import find_files, open_regular, replacing


@pytest.fixture
def tree(tmp_path):
    """A folder with sub-folders, hidden files, other files, links to folders, and a link to nothing."""
    names = [
        "b.JPG",
        "a.png",
        "note.txt",
        ".hidden.png",
        "z/1.png",
        "c/2.jpg",
        "c/deep/er/3.PNG",
        ".git/4.png",
        "out/5.png",
    ]
    for name in names:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "6.png").touch()
    return tmp_path / "tree"


def found(folder, **arguments):
    return [os.path.relpath(path, folder) for path in find_files(folder, (".png", ".jpg"), **arguments)]


def test_files_are_found_in_every_folder_in_order(tree):
    assert found(tree) == ["a.png", "b.JPG", "c/2.jpg", "c/deep/er/3.PNG", "out/5.png", "z/1.png"]
    assert found(tree, skip=tree / "out") == ["a.png", "b.JPG", "c/2.jpg", "c/deep/er/3.PNG", "z/1.png"]
    assert found(tree / ".git") == ["4.png"]  # asked for by name
    assert all(path.startswith(f"{tree}/") for path in find_files(tree, (".png",)))


def test_links_are_followed_but_no_folder_is_entered_twice(tree):
    (tree / "c" / "up").symlink_to(tree)
    (tree / "c" / "deep" / "loop").symlink_to(tree / "c")
    (tree / "link").symlink_to(tree.parent / "elsewhere")
    (tree / "link2").symlink_to(tree.parent / "elsewhere")
    (tree / "gone.png").symlink_to(tree / "nothing")
    assert found(tree) == [
        "a.png", "b.JPG", "gone.png", "c/2.jpg", "c/deep/er/3.PNG", "link/6.png", "out/5.png", "z/1.png"
    ]  # fmt: skip


def test_a_folder_that_cannot_be_listed_is_an_error(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"c/deep: the folder cannot be listed \(Permission denied\)"):
        find_files(tree, (".png",))


@pytest.mark.parametrize(("binary", "text"), [(False, "ä\n"), (True, b"\xff\n")])
def test_a_file_is_whole_or_not_there(tmp_path, binary, text):
    path = Path(tmp_path, "new", "file")
    with replacing(path, binary) as file:
        file.write(text)
        assert not path.exists()
    assert path.read_bytes() == (text if binary else text.encode())

    def fail():
        with replacing(path, binary) as file:
            file.write(text * 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == (text if binary else text.encode())
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_what_is_no_unicode_is_escaped(tmp_path):
    with replacing(tmp_path / "file") as file:
        file.write("ä\udcff")
    assert (tmp_path / "file").read_bytes() == "ä\\udcff".encode()


def test_only_files_are_opened_and_nothing_is_waited_for(tmp_path):
    (tmp_path / "file").write_bytes(b"1\r\n2")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"1\r\n2"
    for name in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="a folder, a pipe or a device, not a file"):
            open_regular(name)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")
