import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from frcnn.files import find_files, fitting, locked, open_regular, remove_drafts, replacing, require_room


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


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "b" * 250 + ".xml"])
def test_every_name_that_a_file_can_have_can_be_written(tmp_path, name):
    with replacing(tmp_path / name) as file:
        file.write("1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_that_are_too_long_are_cut_and_stay_different():
    assert fitting("f/" + "a" * 250, ".xml") == "f/" + "a" * 250 + ".xml" and fitting("a") == "a"
    cut = [fitting(f"f/{'ä' * 126}{end}", "_12.jpg") for end in "bc"]
    assert len(set(cut)) == 2
    for name in cut:
        assert name.startswith("f/ä") and name.endswith("_12.jpg") and len(os.fsencode(name[2:])) <= 255
    assert len(os.fsencode(fitting("\udcff" * 300))) <= 255


def wait_in(tmp_path, block):
    """A process that has entered `with <block>:` in `frcnn.files`."""
    program = f"import time\nfrom pathlib import Path\nfrom frcnn.files import *\nwith {block}:\n"
    program += "    print('in', flush=True)\n    time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_drafts_of_the_killed_are_removed_and_those_of_the_living_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    living, killed = (wait_in(tmp_path, f"replacing('{name}')") for name in ("living", "killed"))
    assert len(list(tmp_path.iterdir())) == 2
    kill(killed)
    remove_drafts(tmp_path, tmp_path / "absent")
    (draft,) = tmp_path.iterdir()
    assert f"-{living.pid}-" in draft.name
    kill(living)


def test_a_lock_goes_with_its_process_and_its_file_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    path, texts = tmp_path / "lock", ("it is written", "wait")
    process = wait_in(tmp_path, f"locked(Path('lock'), *{texts})")
    with (
        pytest.raises(ValueError, match=rf"^it is written by process {process.pid} on .*: wait$"),
        locked(path, *texts),
    ):
        pass
    kill(process)
    assert path.exists()
    with locked(path, *texts), pytest.raises(ValueError, match=f"by process {os.getpid()} on"), locked(path, *texts):
        pass
    assert not path.exists()


def test_a_folder_in_the_way_is_found_before_it_is_written_to(tmp_path):
    (tmp_path / "a.json").mkdir()
    require_room(tmp_path / "new" / "er", ["a.json"])
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"a.json is a folder where a file is to be written: move it"):
        require_room(tmp_path, ["b.json", "a.json"])


def test_a_sub_folder_that_cannot_be_listed_is_told_and_passed_over(tree, monkeypatch):
    real, shut = os.scandir, os.path.join(tree, "c")

    def scandir(place):
        if place == shut:
            raise PermissionError(13, "Permission denied", place)
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    unlisted = {}
    found = [os.path.relpath(path, tree) for path in find_files(tree, (".png", ".jpg"), unlisted=unlisted)]
    assert "a.png" in found and "z/1.png" in found and "c/2.jpg" not in found
    assert unlisted == {shut: f"{shut}: the folder cannot be listed (Permission denied)"}
    for arguments in ((tree, (".png",)), (shut, (".png",), None, {})):
        with pytest.raises(ValueError, match="cannot be listed"):
            find_files(*arguments)
