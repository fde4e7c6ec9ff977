"""Detect objects in the pictures of a folder and its sub-folders, of a list or of annotations; write the detections,
and the pictures with them."""

import os
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from frcnn.cli import add_images_argument, add_override_argument, add_run_arguments, find_run
from frcnn.files import printable, require_room

EXAMPLE = "frcnn detect -p folder/ --run runs/demo --score 0.5"
MOST_ERRORS = 20  # are printed


def add_arguments(parser):
    """The arguments of `frcnn detect`."""
    add = parser.add_argument
    add(
        "-p",
        "--path",
        required=True,
        metavar="PATH",
        help="folder of pictures, sub-folders included; a picture; a text file with one picture a line; or annotations",
    )
    add("--split", metavar="NAME", help="part of the annotations (default: the one that training takes)")
    add_images_argument(add)
    add_run_arguments(parser)
    add("--output", default="detections", metavar="FOLDER", help="where to write (default: detections)")
    formats = ["json", "csv", "voc", "yolo"]
    add("--format", nargs="+", choices=formats, default=formats[:2], help="files to write (default: json csv)")
    add("--resume", action="store_true", help="go on with the run that was interrupted: only what is missing")
    add("--score", type=float, metavar="S", help="lowest score in the files (default: the run's, 0.05)")
    add("--draw-score", type=float, default=0.5, metavar="S", help="lowest score drawn and cut out (default: 0.5)")
    add("--classes", nargs="+", metavar="NAME", help="keep only these classes (default: all)")
    add("--max-detections", type=int, metavar="N", help="most detections in a picture (default: the run's, 100)")
    add("--nms", type=float, metavar="IOU", help="overlap above which the weaker goes (default: the run's, 0.5)")
    add("--batch-size", type=int, metavar="N", help="pictures in a pass (default: the run's, 4)")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="threads that read and draw pictures (default: the run's, one for each core)",
    )
    add("--no-pictures", action="store_true", help="draw no pictures")
    add("--save-crops", action="store_true", help="cut out each detection that is drawn: a folder a class")
    add_override_argument(parser)


def run(arguments):
    """Detect in every picture that is not done yet; say what was found, what could not be read, and where it lies."""
    output = Path(arguments.output)
    unlisted = {}
    names = find_names(arguments.path, output, arguments.split, arguments.images, unlisted)
    require_room(output)
    detector = _load(arguments, find_run(arguments.run, weights=arguments.weights))
    settings = _settings(arguments, detector)

    from frcnn import folders

    with folders.lock(output):
        done = folders.begin(output, settings, arguments.resume) & names.keys()
        try:
            _detect(folders.detect_folder(detector, names, output, settings, done), len(names), len(done))
            broken = folders.write_results(names, detector.class_names, output, arguments.format, unlisted)
            _summarise(folders.read_detections(output, detector.class_names, names), arguments.draw_score)
        except (OSError, ValueError, MemoryError) as error:
            raise ValueError(
                f"{output}: {str(error) or 'memory ran out'}; mend that, then the same command with --resume goes on"
            ) from error
        except KeyboardInterrupt:
            print("\nfrcnn detect: interrupted; the same command with --resume goes on", file=sys.stderr)
            return 130
    print(f"written to {output}: {', '.join(name for name in folders.RESULTS if (output / name).exists())}")
    say_skipped("detect", broken.values(), output / folders.ERRORS)
    return 1 if broken else 0


def say_skipped(command, reasons, file=None):
    """Say on stderr what was left out, the first `MOST_ERRORS` reasons, and where the others are."""
    for reason in list(reasons)[:MOST_ERRORS]:
        print(f"frcnn {command}: skipped: {printable(str(reason))}", file=sys.stderr)
    if len(reasons) > MOST_ERRORS:
        print(f"frcnn {command}: ... {len(reasons)} in all{f', see {file}' if file else ''}", file=sys.stderr)


def find_names(path, output, split=None, images=None, unlisted=None):
    """The pictures that `path` is about: those in a folder and its sub-folders but `output`, or those of a file.

    Args:
        path: a folder, a picture, a text file with the path of a picture a line, or an annotation file of any format.
        output: Path, where results go.
        split: of annotations, as for `read_records`.
        images: a folder, where the pictures of a list or of annotations are looked for too; or None.
        unlisted: of a folder, see `frcnn.files.find_files`.

    Returns:
        dict from each picture's path to its name in the folder that holds them all, "/" between the parts.

    Raises:
        ValueError: nothing there, no picture in it, or one lies in `output`, where a drawing could take its place.
    """
    from frcnn.data.images import SUFFIXES, find_pictures

    if not os.path.exists(path):
        raise ValueError(f"{path}: no such folder or picture")
    is_listed = os.path.isfile(path) and not is_picture(path)
    if (split or images) and not is_listed:
        raise ValueError(f"{path} is no list of pictures, and no annotations: leave out --split and --images")
    if is_listed:
        paths = _read_pictures(path, split, images)
        root = _common_folder(paths)
    else:
        root = os.path.dirname(path) if os.path.isfile(path) else path
        paths = [str(Path(path))] if os.path.isfile(path) else find_pictures(path, output, unlisted)
    places = {root} | ({os.path.dirname(place) for place in paths} if is_listed else set())
    if any(Path(place).resolve().is_relative_to(output.resolve()) for place in places):
        raise ValueError(f"{Path(path)} lies in the output folder {output}: name another --output")
    if not paths:
        reasons = list((unlisted or {}).values()) or [f"{path} holds no picture ({', '.join(SUFFIXES)})"]
        raise ValueError(reasons[0])
    return {str(Path(place)): Path(os.path.relpath(place, root)).as_posix() for place in paths}


def is_picture(path):
    """Whether a file is a picture, perhaps a broken one: by its suffix, else by its content."""
    from frcnn.data.images import SUFFIXES, UNREAD, image_size

    try:
        return str(path).lower().endswith(SUFFIXES + UNREAD) or bool(image_size(path))
    except ValueError:
        return False


def _common_folder(paths):
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(place)) for place in paths])
    except ValueError as error:  # drives of Windows
        raise ValueError(f"the pictures lie on several drives, {paths[0]} for one: detect in each by itself") from error


def _read_pictures(path, split, images):
    """The paths of the pictures of a list or of annotations, each once."""
    from frcnn.data.readers.annotation_text import read_list

    paths = (None if split else read_list(path, images)) or _annotated_pictures(path, split, images)
    return list({os.path.abspath(place): os.path.normpath(place) for place in paths}.values())


def _annotated_pictures(path, split, images):
    """Mistakes about boxes do not matter here, and pictures that cannot be read are said in the end, as of a folder."""
    from frcnn.data.readers import read_records
    from frcnn.data.readers.problems import ELSEWHERE

    problems = []
    records, _ = read_records(path, "auto", split=split, problems=problems, images=images)
    problems = [problem for problem in problems if problem.severity == "error" and problem.kind != "no-boxes"]
    missing = [str(problem) for problem in problems if problem.kind in ("missing-picture", "missing-folder")]
    if missing:
        more = [f"... and {len(missing) - MOST_ERRORS} more"] if len(missing) > MOST_ERRORS else []
        raise ValueError("\n".join([*missing[:MOST_ERRORS], *more, *([ELSEWHERE] if images is None else [])]))
    unread = [problem.message.partition(": cannot ")[0] for problem in problems if problem.kind == "unreadable-picture"]
    if len(problems) > len(unread):
        print(f"note: {len(problems) - len(unread)} mistakes in {path} are passed over: frcnn doctor lists them")
    return [*(record.path for record in records), *unread]


def _load(arguments, run_folder):
    flags = {
        "detect.score_threshold": arguments.score,
        "detect.nms_iou": arguments.nms,
        "detect.max_detections": arguments.max_detections,
        "detect.batch_size": arguments.batch_size,
        "data.workers": arguments.workers,
    }
    overrides = [f"{field}={value}" for field, value in flags.items() if value is not None]

    from frcnn import backend
    from frcnn.inference import load_detector

    print(f"{backend.start_device()}; detector {run_folder}", flush=True)
    detector = load_detector(run_folder, weights=arguments.weights, overrides=[*arguments.overrides, *overrides])
    if detector.weights_report:
        print(detector.weights_report, flush=True)
    return detector


def _settings(arguments, detector):
    """What must be the same for a run to go on with another's work, a dict of plain values."""
    from frcnn.inference import fingerprint

    known = detector.class_names
    unknown = [name for name in arguments.classes or () if name not in known]
    if unknown:
        raise ValueError(f"--classes: the detector has no {', '.join(unknown)}; it knows {', '.join(known)}")
    config = detector.config.model_dump(mode="json")
    fields = {f"{section}.{name}": value for section, values in config.items() for name, value in values.items()}
    for speed_only in ("detect.batch_size", "data.workers"):
        del fields[speed_only]
    return fields | {
        "path": str(Path(arguments.path)),
        "weights": fingerprint(detector),
        "class_names": list(known),
        "classes": arguments.classes,
        "draw_score": arguments.draw_score,
        "pictures": not arguments.no_pictures,
        "crops": arguments.save_crops,
    }


def _detect(numbers, total, done):
    """Run through the `numbers` of finished pictures; a line that follows them on a terminal, else one now and then."""
    if done:
        print(f"{done} of {total} pictures are done already" + "; nothing is left to detect" * (done == total))
    terminal = sys.stdout.isatty()
    start = shown = time.perf_counter()
    for number in numbers:
        now, left = time.perf_counter(), total - done - number
        rate = number / (now - start)
        if now - shown > (0.2 if terminal else 30) and left:
            shown, bar = now, f"[{'#' * (30 * (total - left) // total):<30}] "
            text = f"{total - left}/{total} pictures, {rate:.1f}/s, {timedelta(seconds=round(left / rate))} left"
            print(f"\r{bar}{text} " if terminal else text, end="" if terminal else "\n", flush=True)
        elif not left:
            text = f"{number} pictures in {now - start:.1f} s, {rate:.1f}/s"
            print(f"\r{text:<80}" if terminal else text)


def _summarise(found, draw_score):
    pictures, counts = 0, Counter()
    for detections in found:
        pictures += 1
        counts.update(detections.class_names[label] for label in detections.above(draw_score).labels)
    text = f"{pictures} pictures, {counts.total()} detections of score {draw_score:g} or more: "
    print((text + ", ".join(f"{count} {name}" for name, count in counts.most_common())).rstrip(": "))
