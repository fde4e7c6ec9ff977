"""Damaged annotations for every reader; `python -m tests.fuzz.annotations coco 100000` runs many and prints what came.

With the package atheris, `python -m tests.fuzz.annotations coco guided -runs=100000` lets coverage choose the damage.

Only a ValueError may leave a reader, and within seconds. Where nothing is wrong, the collector of problems must agree.
"""

import collections
import copy
import importlib
import json
import re
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import cv2
import numpy as np

from frcnn.data.readers import read_records
from tests.contracts import assert_is_record
from tests.fuzz.mutations import mutate

SLOWEST = 10  # seconds
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
XML = f"<annotation>\n<filename>a.png</filename>\n<object><name>cat</name><difficult>1</difficult>{BOX}</object>\n"
COCO = {
    "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}, {"id": "x", "file_name": "b.png"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2.5, 30, 20], "area": 600, "iscrowd": 0},
        {"id": 2, "image_id": "x", "category_id": 1, "bbox": [0, 0, 60, 40], "iscrowd": 1, "segmentation": [[1, 2]]},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "größe, 大"}],
}
SIDES = {"x": 1.5, "y": 5, "width": 50, "height": 100, "rotation": 30, "rectanglelabels": ["cat", "größe, 大"]}
RESULT = {"type": "rectanglelabels", "value": SIDES, "original_width": 60, "original_height": 40, "image_rotation": 0}
ANNOTATIONS = [{"was_cancelled": True}, {"result": [RESULT, {"type": "choices", "value": {}}]}, {"result": []}]
TASKS = [
    {"id": 7, "data": {"image": "/data/local-files/?d=pictures/a.png"}, "annotations": ANNOTATIONS},
    {"id": 8, "data": {"photo": "/data/upload/1/0a1b2c3d-b.png"}, "annotations": [{"result": []}]},
]
ROWS = [{"id": 7, "image": "http://host/x/a.png", "label": [SIDES | {"original_width": 60, "original_height": 40}]}]
LINES = [
    {"file_name": "a.png", "objects": {"bbox": [[1, 2.5, 30, 20], [0, 0, 60, 40]], "categories": ["cat", "größe, 大"]}},
    {"file_name": "b.png", "objects": [{"bbox": [1, 2, 30, 20], "category": 7}]},
]
YAML = {"path": ".", "train": ["images", "list.txt"], "val": "list.txt", "nc": 2, "names": {"0": "cat", "1": "dog"}}
WORDS = """NaN -Infinity 1e308 -1 0 0.5 7 null true " \\ud800 [ { ] } : ; - ? | > a.png b.png,,,,, bg cat ../..
/dev/zero &#0; &lt; <!DOCTYPE <object> </object> <bndbox/> *a &a !!python/none <<: %YAML images train.txt names"""
TOKENS = [*WORDS.split(), "9" * 5000, "[" * 2000, "x" * 5000, "\ufeff", "\0", "\r", "\n", "\x1b", "\u2028", ""]
VALUES = [
    None,
    True,
    -1,
    0,
    3,
    0.5,
    1e308,
    10**400,
    float("nan"),
    "",
    "a.png",
    "../a.png",
    "\ud800",
    "\n",
    [],
    {},
    [[1]],
]
# What is damaged: the file's place in the tree of `plant`, and whole texts for it.
CORPUS = {
    "simple": (
        "annotations.txt",
        ["a.png,1,2,30,20,cat\nb.png,,,,,\n", '"a.png" , 1.5,2,61,20,"größe, 大"\r\na.png,0,0,9,9,bg'],
    ),
    "voc": (
        "Annotations/a.xml",
        [f"{XML}</annotation>", f'<?xml version="1.0" encoding="latin-1"?>{XML}<object/></annotation>'],
    ),
    "coco": ("instances.json", [json.dumps(COCO), json.dumps(COCO, indent=1, ensure_ascii=False)]),
    "csv": (
        "boxes.csv",
        [
            "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,60,40,cat,1,2,30,20\nb.png,60,40,,,,,\n",
            "ImageID;Source;LabelName;XMin;XMax;YMin;YMax;IsGroupOf\r\na;x;/m/01;0.1;0.9999999;.2;1;1\r\n",
        ],
    ),
    "label-studio": ("export.json", [json.dumps(TASKS), json.dumps(ROWS, ensure_ascii=False)]),
    "huggingface": ("metadata.jsonl", [*map(json.dumps, LINES), "\n".join(map(json.dumps, LINES))]),
    "yolo": (
        "labels/a.txt",
        ["0 0.5 0.5 0.25 0.5\n1 0.9999999 0.5 1e-3 1", "1 0.1 0.1 0.2 0.1 0.2 0.9\n\n0 0.5 0.5 1 1\r\n"],
    ),
    "yaml": (
        "data.yaml",
        [
            "path: .\ntrain: images\nnames:\n  0: cat\n  1: 'größe'\n",
            "train: [images, list.txt]\nnames: [cat, no]\nkpt_shape: [3, 2]\nnc: 3\nextra: 1",
            json.dumps(YAML),
        ],
    ),
}
TOGETHER = {"voc": 50, "yolo": 50}  # formats of many files: so many damaged ones are read at once


def plant(folder, format, count=1):
    """Write pictures and a data set around the files that are damaged; returns what to read and these `count` files."""
    folder = Path(folder)
    name, _ = CORPUS[format]
    stems = [f"{number}" for number in range(count)] if format in TOGETHER else [Path(name).stem]
    picture = cv2.imencode(".png", np.zeros((40, 60), np.uint8))[1].tobytes()
    for place in (".", "JPEGImages", "images"):
        (folder / place).mkdir(exist_ok=True)
        for stem in ("a", "b", *stems):
            (folder / place / f"{stem}.png").write_bytes(picture)
    if format in ("yolo", "yaml"):
        (folder / "data.yaml").write_text(CORPUS["yaml"][1][0])
        (folder / "list.txt").write_text("images/b.png\n")
    files = [folder / name.replace("a.", f"{stem}.") if format in TOGETHER else folder / name for stem in stems]
    files[0].parent.mkdir(exist_ok=True)
    return (folder if format in ("voc", "yolo", "yaml") else files[0]), files


def read(path, format, problems=None):
    """Records, class names and no error, or no records and the error."""
    start = time.perf_counter()
    try:
        records, class_names = read_records(path, {"yaml": "yolo"}.get(format, format), problems=problems)
    except ValueError as error:
        return None, (), str(error)
    finally:
        assert time.perf_counter() - start < SLOWEST, "too slow"
    for record in records:
        assert_is_record(record, class_names)
    return records, class_names, None


def check(path, format):
    """Read twice, raising and collecting; returns what happened, for counting.

    Raises:
        AssertionError: the two disagree, or a message is none.
    """
    problems = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good, names, error = read(path, format)
        rest, rest_names, unusable = read(path, format, problems)
    assert error is None or error.replace("\n", "").isprintable(), ascii(error)
    assert unusable is None or path.name in unusable or unusable.startswith("/"), f"names no file: {unusable}"
    assert all(problem.kind and problem.message.isprintable() for problem in problems)
    errors = [problem for problem in problems if problem.severity == "error"]
    if error is not None:
        assert unusable or errors, f"raised, but not collected: {error}"
        return "unusable" if unusable else "mistakes"
    assert unusable is None and all(problem.kind == "degenerate-box" for problem in errors), errors
    assert names == rest_names and len(good) == len(rest)
    assert all(np.array_equal(one.boxes, other.boxes) for one, other in zip(good, rest))
    return "notes" if problems else "read"


def damage(data, generator, other):
    """One of the changes below, or of `mutate`."""
    draw = generator.random()
    if draw < 0.2:
        return mutate(data, generator, other)
    changed = change_values(data, generator) if draw < 0.7 else data
    return change_words(data, generator) if changed == data else changed


def change_words(data, generator):
    """Swap words, numbers and signs of a text for others, its own or of TOKENS: what stays text gets further in."""
    words = re.findall(r"\w+|\W", data.decode(), re.ASCII)
    for place in generator.integers(0, len(words), generator.integers(1, 4)):
        source = TOKENS if generator.random() < 0.5 else words
        words[place] = str(source[generator.integers(len(source))])
    return "".join(words).encode()


def change_values(data, generator):
    """Change one to three values of a JSON text for others, at any depth; any other text stays as it is."""
    try:
        tree = json.loads(data)
    except ValueError:
        return data
    for _ in range(generator.integers(1, 4)):
        node = tree
        while len(node):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = keys[generator.integers(len(keys))]
            if not isinstance(node[key], dict | list) or generator.random() < 0.1:
                node[key] = copy.deepcopy(VALUES[generator.integers(len(VALUES))])
                break
            node = node[key]
    return json.dumps(tree).encode()


def run(format, count, seed, folder):
    """Check `count` damaged files, after the whole ones; returns a Counter of outcomes."""
    generator, outcomes = np.random.default_rng(seed), collections.Counter()
    path, files = plant(folder, format, TOGETHER.get(format, 1))
    whole = [text.encode() for text in CORPUS[format][1]]
    others = whole + [token.encode() for token in TOKENS]
    for index in range(0, count, len(files)):
        for number, file in enumerate(files, index):
            data = whole[number % len(whole)]
            if number >= len(whole):
                data = damage(data, generator, others[generator.integers(len(others))])
            file.write_bytes(data)
        outcomes[check(path, format)] += len(files)
    return outcomes


def run_guided(format, arguments, folder):
    """Let atheris choose the bytes; it stops at the first failure and writes them to a file crash-*."""
    import atheris

    for name in [name for name in sys.modules if name.startswith("frcnn.data.readers")]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["frcnn.data.readers"]):
        globals()["read_records"] = importlib.import_module("frcnn.data.readers").read_records
    path, (file, *_) = plant(folder, format)
    corpus = Path(folder, "corpus")
    corpus.mkdir()
    for number, text in enumerate([*CORPUS[format][1], *TOKENS]):
        (corpus / str(number)).write_text(text)

    def check_bytes(data):
        file.write_bytes(data)
        check(path, format)

    atheris.Setup([sys.argv[0], *arguments, str(corpus)], check_bytes)
    atheris.Fuzz()


if __name__ == "__main__":
    begin, (format, count, *arguments) = time.perf_counter(), sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if count == "guided":
            run_guided(format, arguments, folder)
        seed = int(arguments[0]) if arguments else 0
        outcomes = run(format, int(count), seed, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{format}: {dict(outcomes)} in {time.perf_counter() - begin:.0f} s, seed {seed}, at most {peak} MB")
