"""Detect objects in a folder of pictures; write annotated pictures, detections.json (COCO results), detections.csv."""

import sys
from pathlib import Path

from frcnn.cli import add_override_argument, add_run_arguments, find_run

EXAMPLE = "frcnn detect -p folder/ --run runs/demo --score 0.5"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def add_arguments(parser):
    """The arguments of `frcnn detect`."""
    parser.add_argument("-p", "--path", required=True, metavar="FOLDER", help="folder of pictures, or one picture")
    add_run_arguments(parser)
    parser.add_argument("--output", default="detections", metavar="FOLDER", help="where to write (default: detections)")
    parser.add_argument("--score", type=float, metavar="S", help="lowest score in the files (default: the run's, 0.05)")
    parser.add_argument("--draw-score", type=float, default=0.5, metavar="S", help="lowest score drawn (default: 0.5)")
    parser.add_argument(
        "--nms", type=float, metavar="IOU", help="overlap above which the weaker goes (default: the run's, 0.5)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures in a pass (default: the run's, 4)")
    add_override_argument(parser)


def run(arguments):
    """Detect in every picture; say what was found, what could not be read, and where the results are."""
    paths, output = find_pictures(arguments.path), Path(arguments.output)
    run_folder = find_run(arguments.run)
    detector = _load(arguments, run_folder)
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    found, broken = _detect_all(detector, paths, arguments, output / "pictures")

    from frcnn.outputs import write_csv, write_json

    write_json(output / "detections.json", found)
    write_csv(output / "detections.csv", found)
    drawn = sum(len(detections.above(arguments.draw_score)) for detections in found)
    print(f"{len(found)} pictures, {drawn} detections of score {arguments.draw_score:g} or more")
    print(f"pictures: {output / 'pictures'}; files: {output / 'detections.json'}, {output / 'detections.csv'}")
    for error in broken:
        print(f"frcnn detect: skipped: {error}", file=sys.stderr)
    return 1 if broken else 0


def find_pictures(path):
    """The pictures of a folder, sorted by name, or the one picture that `path` is.

    Raises:
        ValueError: nothing there, or no picture in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder or picture")
    paths = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{path} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return paths


def _load(arguments, run_folder):
    flags = {"score_threshold": arguments.score, "nms_iou": arguments.nms, "batch_size": arguments.batch_size}
    overrides = [f"detect.{field}={value}" for field, value in flags.items() if value is not None]

    from frcnn import backend
    from frcnn.inference import load_detector

    print(f"{backend.start_device()}; run folder {run_folder}", flush=True)
    return load_detector(run_folder, weights=arguments.weights, overrides=[*arguments.overrides, *overrides])


def _detect_all(detector, paths, arguments, folder):
    import keras

    from frcnn.data.images import read_image, write_image
    from frcnn.inference import detect_stream
    from frcnn.visualize import draw_detections

    found, broken = [], []
    progress = keras.utils.Progbar(len(paths), unit_name="picture", verbose=1 if sys.stdout.isatty() else 2)
    for result in detect_stream(detector, paths):
        if isinstance(result, Exception):
            broken.append(result)
        else:
            found.append(result)
            picture = draw_detections(read_image(result.path), result.above(arguments.draw_score))
            write_image(folder / Path(result.path).name, picture)
        progress.update(len(found) + len(broken))
    return found, broken
