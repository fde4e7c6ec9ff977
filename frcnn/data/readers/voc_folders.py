"""Where Pascal VOC's XML files and their pictures lie: trees of VOC, and any other folder that holds both.

A tree has `Annotations` beside `JPEGImages`, with the same sub-folders in both, and the names of each split in
`ImageSets/Main/*.txt`. Elsewhere the XML files lie beside their pictures, or in folders of their own (`annots` and
`images`); folders called train, valid or test are then the splits.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from frcnn.data.images import SUFFIXES
from frcnn.data.readers.problems import read_bytes
from frcnn.files import find_files

# The split that a folder's name stands for.
FOLDER_SPLITS = {"train": "train", "training": "train", "trainval": "trainval", "test": "test", "testing": "test"}
FOLDER_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
_PICTURES = {"jpegimages", "images", "image", "imgs", "img"}  # folders that hold the picture, where others hold a mask


class Tree(NamedTuple):
    """XML files, and the pictures among which theirs are.

    Attributes:
        annotations: folder below which the XML files are.
        pictures: folder below which the pictures are, in the same sub-folders if they lie in the same ones at all.
        files: dict from what a list of a split calls an XML file, such as "cam1/a", to the file, a Path.
        names: dict from each folder of pictures to the set of the names in it.
        splits: dict from name to the list's file, a Path, or to the list of the split's XML files.
        is_classic: whether it is a tree of VOC, in which everything that is in its folders belongs to it.
    """

    annotations: Path
    pictures: Path
    files: dict
    names: dict
    splits: dict
    is_classic: bool


def find_trees(path):
    """The folders of the VOC trees at a path: itself, or those in it whose names begin with VOC."""
    path = Path(path)
    places = (path, *sorted(path.glob("VOC*")))
    return [tree for tree in places if (tree / "Annotations").is_dir() and (tree / "JPEGImages").is_dir()]


def list_trees(path):
    """The `Tree`s at a path: those of VOC or, where there is none, the folder itself if it holds XML files."""
    path = Path(path)
    trees = []
    for tree in find_trees(path):
        annotations, pictures = tree / "Annotations", tree / "JPEGImages"
        files = {_key(file, annotations): Path(file) for file in find_files(annotations, (".xml",))}
        names = _by_folder(find_files(pictures, ("",)))
        trees.append(Tree(annotations, pictures, files, names, list_files(tree), True))
    return trees or _list_folder(path)


def _list_folder(path):
    everything = find_files(path, ("",)) if path.is_dir() else []
    found = [Path(file) for file in everything if file.lower().endswith(".xml")]
    if not found:
        return []
    files = {_key(file, path): file for file in found}
    splits = list_files(path)
    if splits:  # lists leave the first folder out: "a" is annots/a
        files |= {key.partition("/")[2] or key: file for key, file in files.items()}
    else:
        splits = defaultdict(list)
        for file in found:
            splits[_folder_split(file.parent, path)].append(file)
        splits.pop(None, None)
    names = _by_folder(file for file in everything if not file.lower().endswith(".xml"))
    names = {folder: held for folder, held in names.items() if any(name.lower().endswith(SUFFIXES) for name in held)}
    return [Tree(path, path, files, names, dict(splits), False)]


def list_files(tree):
    """The lists of a tree's splits by name, those of one class included."""
    return {file.stem: file for file in sorted((tree / "ImageSets" / "Main").glob("*.txt")) if file.is_file()}


def voc_splits(path):
    """Names of the splits at `path`, sorted; lists of one class, with a flag a line, do not count."""
    path, names = Path(path), set()
    splits = [list_files(tree) for tree in find_trees(path)] or [tree.splits for tree in _list_folder(path)]
    for name, source in (item for found in splits for item in found.items()):
        flagged = isinstance(source, Path) and _first_line(source).split()[1:] in ([b"-1"], [b"0"], [b"1"])
        names |= set() if flagged else {name}
    return tuple(sorted(names))


def _first_line(file):
    return read_bytes(file).strip().partition(b"\n")[0]


def match_pictures(tree, wanted):
    """Find the picture of each XML file: where the folders correspond first, and by <filename> before the XML's name.

    A folder of XML files goes with one of pictures, or with several: with itself (in a tree: the same sub-folder of
    JPEGImages); else with those whose path differs in one folder (annots/cam1, images/cam1); else with any. Pictures
    that lie beside their own XML files, or in the folder of another split, are not taken.

    Args:
        tree: `Tree`.
        wanted: list of (XML file, text of <filename>).

    Returns:
        list of (list of paths that fit equally well, folders that were looked in), for each of `wanted`.
    """
    stems = {
        folder: {os.path.splitext(name)[0]: name for name in sorted(names) if name.lower().endswith(SUFFIXES)}
        for folder, names in tree.names.items()
    }
    groups = defaultdict(list)
    for file, filename in wanted:
        groups[file.parent].append((filename, file.stem))
    homes = {folder: [str(tree.pictures / folder.relative_to(tree.annotations))] for folder in groups}
    chosen = {
        folder: home
        for folder, home in homes.items()
        if _holding(groups[folder], home, tree.names, stems) or (tree.is_classic and home[0] in tree.names)
    }
    taken = {home for (home,) in chosen.values()}
    for folder in groups.keys() - chosen.keys():
        free = [place for place in tree.names if place not in taken and _may_go_together(tree, folder, place)]
        twins = [place for place in free if _is_twin(tree, folder, place)]
        levels = ((twins, tree.names, {}), (free, tree.names, {}), (twins, {}, stems), (free, {}, stems))
        chosen[folder] = next(filter(None, (_holding(groups[folder], *level) for level in levels)), homes[folder])
    folders = [chosen[file.parent] for file, _ in wanted]
    return [
        (_best(filename, file.stem, places, tree.names, stems), places)
        for (file, filename), places in zip(wanted, folders, strict=True)
    ]


def _holding(group, folders, names, stems):
    """Those of the folders that hold a picture of the group, a list of (filename, stem)."""
    filenames, own = ({pair[index] for pair in group} - {""} for index in (0, 1))
    return [
        folder
        for folder in folders
        if not filenames.isdisjoint(names.get(folder, ())) or not own.isdisjoint(stems.get(folder, ()))
    ]


def _best(filename, stem, folders, names, stems):
    found = [os.path.join(folder, filename) for folder in folders if filename in names.get(folder, ())]
    found = found or [os.path.join(folder, stems[folder][stem]) for folder in folders if stem in stems.get(folder, ())]
    plain = [place for place in found if not _PICTURES.isdisjoint(Path(place.lower()).parts)]
    return plain if len(plain) == 1 else found


def _may_go_together(tree, folder, place):
    if tree.is_classic:  # sub-folders of other names are other ones
        return not _parts(folder, tree.annotations) or not _parts(place, tree.pictures)
    splits = _folder_split(folder, tree.annotations), _folder_split(place, tree.pictures)
    return None in splits or splits[0] == splits[1]


def _is_twin(tree, folder, place):
    """Whether the folders' paths differ in one folder that is another, or that only one of them has."""
    short, long = sorted((_parts(folder, tree.annotations), _parts(place, tree.pictures)), key=len)
    if len(short) == len(long):
        return sum(one != other for one, other in zip(short, long, strict=True)) == 1
    return any(long[:index] + long[index + 1 :] == short for index in range(len(long)))


def _folder_split(folder, root):
    return next((FOLDER_SPLITS[name] for name in map(str.lower, _parts(folder, root)) if name in FOLDER_SPLITS), None)


def _parts(place, root):
    return Path(place).relative_to(root).parts


def _key(file, root):
    return Path(file).relative_to(root).with_suffix("").as_posix()


def _by_folder(files):
    names = defaultdict(set)
    for file in files:
        folder, name = os.path.split(file)
        names[folder].add(name)
    return dict(names)


def unannotated(tree, used):
    """The pictures for which no XML file is, in all folders; `used`: set of paths."""
    stems = {file.stem for file in tree.files.values()}
    for folder in sorted(tree.names):
        for name in sorted(tree.names.get(folder, ())):
            place = os.path.join(folder, name)
            if name.lower().endswith(SUFFIXES) and place not in used and os.path.splitext(name)[0] not in stems:
                yield place


def describe_layout(path, records):
    """How the XML files of records with boxes lie to their pictures, for people; "" where that is not known."""
    pairs = {
        (os.path.dirname(record.source), os.path.relpath(os.path.dirname(record.path), path))
        for record in records
        if record.source
    }
    if not pairs:
        return ""
    if all(os.path.normpath(xml or ".") == pictures for xml, pictures in pairs):
        return f"XML beside its picture, {len(pairs)} folder{'s' * (len(pairs) > 1)}"
    xml, pictures = min(pairs)
    more = f" and so on, {len(pairs)} folders" if len(pairs) > 1 else ""
    return f"XML in {xml or '.'}, pictures in {pictures}{more}"
