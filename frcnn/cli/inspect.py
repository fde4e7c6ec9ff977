"""Look before training: the effective config, the network, its anchors, the batches that it sees."""

from pathlib import Path

from frcnn.cli import add_annotation_arguments, add_images_argument, add_override_argument, find_run
from frcnn.files import require_room

EXAMPLE = "frcnn inspect model --config config/resnet50_c4.yaml data.im_size=480"
SUBJECTS = {  # name: (what it shows, example)
    "config": ("every field with its value and its meaning", "data.im_size=480"),
    "model": ("the layers with parameters and multiply-adds; with --output also graphs", "--output graphs"),
    "anchors": ("the anchors on a picture, and what they stand for", "a.jpg --boxes annotations.txt"),
    "batch": ("a contact sheet of padded, augmented batches with their boxes", "-p annotations.txt"),
}
GRAPHS = ("backbone", "block", "classifier", "training")
_CELL = 400  # pixels of a picture on a contact sheet


def add_arguments(parser):
    """The arguments of `frcnn inspect`."""
    subjects = parser.add_subparsers(dest="what", required=True, metavar="what")
    parsers = {
        name: subjects.add_parser(name, help=text, description=text, epilog=f"example: frcnn inspect {name} {example}")
        for name, (text, example) in SUBJECTS.items()
    }
    parsers["anchors"].add_argument("image", metavar="IMAGE", help="a picture")
    for name, subject in parsers.items():
        source = subject.add_mutually_exclusive_group()
        source.add_argument("--config", metavar="YAML", help="a recipe (default: the defaults)")
        if name != "config":
            source.add_argument("--run", metavar="PATH", help="the config of a run folder or a config.pickle instead")
        add_override_argument(subject)
    model, anchors, batch = (parsers[name].add_argument for name in ("model", "anchors", "batch"))
    model("--output", metavar="FOLDER", help="draw the graphs into this folder")
    model("--format", default="png", choices=["png", "svg"], help="of the graphs (default: png)")
    anchors("--boxes", metavar="PATH", help="annotations that hold the picture, of any format that training reads")
    add_images_argument(anchors)
    box = "a box in pixels of the picture; may be repeated"
    anchors("--box", action="append", default=[], metavar="X1,Y1,X2,Y2", help=box)
    anchors("--stride", type=int, metavar="N", help="pixels between anchors (default: the network's)")
    anchors("--output", default="anchors.png", metavar="PNG", help="the picture to write (default: %(default)s)")
    add_annotation_arguments(parsers["batch"])
    batch("--epochs", type=int, default=4, metavar="N", help="rows of the sheet (default: %(default)s)")
    batch("--output", default="batch.png", metavar="PNG", help="the sheet to write (default: %(default)s)")


def run(arguments):
    """Show what was asked for."""
    output = Path(getattr(arguments, "output", None) or ".")
    if arguments.what in ("anchors", "batch"):
        require_room(output.parent, [output.name])
    elif arguments.what == "model" and arguments.output:
        require_room(output, [f"{name}.{arguments.format}" for name in GRAPHS])
    show = {"config": _show_config, "model": _show_model, "anchors": _show_anchors, "batch": _show_batch}
    return show[arguments.what](arguments)


def _show_config(arguments):
    from frcnn.config import describe_config, load_config

    print(describe_config(load_config(arguments.config, arguments.overrides)))
    return 0


def _load(arguments):
    """The config, and the class names of a run or None."""
    from frcnn.config import load_config, load_run_config, with_overrides

    if not arguments.run:
        return load_config(arguments.config, arguments.overrides), None
    config, class_names = load_run_config(find_run(arguments.run))
    return with_overrides(config, arguments.overrides), class_names


# --------------------------------------------------------------------------------------------------------- model


def _show_model(arguments):
    config, class_names = _load(arguments)
    class_names = class_names or tuple(f"class {index}" for index in range(20))  # as many as Pascal VOC has

    from frcnn.data.batches import padded_size
    from frcnn.data.images import resized_size
    from frcnn.models import summary
    from frcnn.models.detector import build_detector

    size = resized_size(3, 4, config.data.im_size, config.data.max_size)
    detector, parts = summary.at_size(build_detector(config, class_names), *padded_size(size))
    costs = {part.name: summary.layer_costs(part) for part in parts}
    classifier = _build_classifier(config, class_names)
    print(summary.cost_table(costs))
    print(
        f"\n{len(class_names)} classes, pictures of {_by(size)}, padded to {_by(padded_size(size))}; roi_head: one RoI."
    )
    print("Parameters include stored statistics; multiply-adds are those of convolutions and dense layers.")
    if config.model.weights != "none" and config.model.conventions == "auto":
        print("note: without what model.weights may ask for, such as biases")
    print(_price_of_a_detection(costs, config.rpn.test_post_nms))
    parameters, multiply_adds = summary.sum_costs(summary.layer_costs(classifier))
    print(f"Its ResNet as a classifier of 224x224: {parameters:,} parameters, {multiply_adds:,} multiply-adds")
    print(f"\nWhy bottlenecks (He et al. 2015, figure 5), kernels only:\n{summary.bottleneck_arithmetic(64)}")
    if arguments.output:
        backbone = summary.collapse_blocks(parts[0])
        block = next(layer for layer in backbone.layers if layer.name.startswith("res"))
        classifier = summary.collapse_blocks(classifier)
        models = dict(zip(GRAPHS, (backbone, block, classifier, detector)))
        _draw_graphs(models, Path(arguments.output), arguments.format)
    return 0


def _build_classifier(config, class_names):
    from frcnn.config import with_overrides
    from frcnn.models.classifier import build_classifier

    config = with_overrides(config, ["data.im_size=224", "data.max_size=224"])
    return build_classifier(config, class_names).get_layer("resnet")


def _by(size):
    return f"{size[0]}x{size[1]}"


def _price_of_a_detection(costs, rois):
    from frcnn.models.summary import sum_costs

    giga = {name: sum_costs(layers)[1] / 1e9 for name, layers in costs.items()}
    head = giga.pop("roi_head")
    terms = [f"{name} {value:.2f}" for name, value in giga.items()] + [f"roi_head {rois} x {head:.3f}"]
    return f"A detection: {' + '.join(terms)} = {sum(giga.values()) + rois * head:.1f} G multiply-adds"


def _draw_graphs(models, folder, format):
    from frcnn.files import replacing
    from frcnn.models.summary import draw_graph

    pictures = {f"{name}.{format}": draw_graph(model, format) for name, model in models.items()}  # all, or none
    for name, picture in pictures.items():
        with replacing(folder / name, binary=True) as file:
            file.write(picture)
    print(f"\ngraphs in {folder}: {', '.join(pictures)}")


# ------------------------------------------------------------------------------------------------------- anchors


def _show_anchors(arguments):
    config, _ = _load(arguments)
    record, class_names = _find_boxes(arguments)

    import numpy as np

    from frcnn.data.augment import scale
    from frcnn.data.batches import padded_size
    from frcnn.data.images import read_image, resized_size, write_image
    from frcnn.ops.boxes import box_iou
    from frcnn.visualize import draw_anchors

    size = resized_size(*record.size, config.data.im_size, config.data.max_size)
    image, boxes = scale(read_image(record.path, config.data.bit_depth), record.boxes, size)
    levels, ratios = _levels(config, arguments.stride), config.model.anchor_ratios
    anchors, kinds, middle = _lay_out(levels, ratios, padded_size(size), adapt=arguments.stride is None)
    matches, iou = _match(anchors, boxes, config.rpn), np.asarray(box_iou(boxes, anchors))
    print(f"{record.path}, {_by(record.size)}, resized to {_by(size)}, padded to {_by(padded_size(size))}")
    print(_count_table(kinds, matches))
    drawn = draw_anchors(image, anchors, matches, iou, boxes)
    if len(boxes):
        names = [class_names[label] for label in record.labels]
        print(f"\n{_box_table(boxes, names, iou, matches, kinds)}")
        low, threshold = (iou.max(axis=1) < config.rpn.positive_iou).sum(), config.rpn.positive_iou
        print(
            f"{low} of {len(boxes)} boxes below rpn.positive_iou={threshold:g}: their best anchors alone are positive"
        )
    else:
        drawn = _draw_cell(drawn, anchors[middle] * (len(drawn) // len(image)), kinds[middle])
    write_image(arguments.output, drawn)
    print(f"written to {arguments.output}")
    return 0


def _levels(config, stride):
    """(stride, sizes) of each feature map with anchors."""
    if stride is not None and stride < 1:
        raise ValueError(f"--stride ({stride}) must be at least 1")
    return [(stride or own, sizes) for own, sizes in config.model.anchor_levels]


def _match(anchors, boxes, settings):
    """What training makes of the anchors, (A,): see `frcnn.ops.targets.match_anchors`."""
    import numpy as np

    from frcnn.ops.targets import match_anchors

    empty = [[0, 0, 0, 0]]  # a slot that holds no box, as in every batch
    slots, labels = np.concatenate([boxes, empty]).astype(np.float32), np.arange(len(boxes) + 1)
    labels[-1] = -1
    return np.asarray(match_anchors(anchors, slots[None], labels[None], settings.positive_iou, settings.negative_iou))[
        0
    ]


def _draw_cell(picture, anchors, kinds):
    """Draw the anchors of one cell, named by their size."""
    from frcnn.visualize import draw_boxes

    sizes = sorted(set(kinds[:, 1]))
    labels = [sizes.index(size) for size in kinds[:, 1]]
    return draw_boxes(picture, anchors, labels, [f"{size:g}" for size in sizes])


def _find_boxes(arguments):
    """The record of the picture, with the boxes that were given, and the names of their classes."""
    import os

    from frcnn.data.images import image_size
    from frcnn.data.readers import read_records
    from frcnn.records import ImageRecord

    path, place = arguments.image, arguments.boxes
    if place and arguments.box:
        raise ValueError("give either --boxes or --box, not both")
    if place:
        records, class_names = read_records(place, "auto", images=arguments.images)
        found = [record for record in records if os.path.realpath(record.path) == os.path.realpath(path)]
        if not found:
            raise ValueError(f"{place} does not hold {path}, only {len(records)} others, as {records[0].path}")
        return found[0], class_names
    try:
        boxes = [[float(number) for number in box.split(",")] for box in arguments.box]
    except ValueError:
        boxes = [[]]
    if any(len(box) != 4 for box in boxes):
        raise ValueError(
            f"--box {' '.join(arguments.box)}: expected X1,Y1,X2,Y2, four numbers in pixels of the picture"
        )
    return ImageRecord(path, image_size(path), boxes, [0] * len(boxes)), ("box",)


def _lay_out(levels, ratios, size, adapt):
    """Of levels (stride, sizes): (A, 4) anchors; (A, 3) their stride, size, ratio; indices of those in the middle.

    A map whose stride does not divide the picture may adapt it, as P6 does: to pixels by cells (torchvision's rule).
    """
    import numpy as np

    from frcnn.ops.anchors import grid_anchors

    anchors, kinds, middle = [], [], []
    for stride, sizes in levels:
        rows, columns = (-(-side // stride) for side in size)
        of_a_cell = np.array([(stride, side, ratio) for ratio in ratios for side in sizes])  # grid_anchors' order
        first = sum(map(len, anchors)) + (rows // 2 * columns + columns // 2) * len(of_a_cell)
        middle.append(np.arange(first, first + len(of_a_cell)))
        steps = [size[0] // rows, size[1] // columns] if adapt else stride
        anchors.append(np.asarray(grid_anchors(rows, columns, steps, sizes, ratios)))
        kinds.append(np.tile(of_a_cell, (rows * columns, 1)))
    return np.concatenate(anchors), np.concatenate(kinds), np.concatenate(middle)


def _count_table(kinds, matches):
    """How many anchors of each stride and size stand for a box, are in no loss, are background."""
    import pandas as pd

    states = {"anchors": matches > -3, "positive": matches >= 0, "ignored": matches == -2, "negative": matches == -1}
    table = pd.DataFrame({"stride": kinds[:, 0], "size": kinds[:, 1], **states})
    return table.groupby(["stride", "size"], as_index=False).sum().to_string(index=False, float_format="{:g}".format)


def _box_table(boxes, names, iou, matches, kinds):
    """What each box gets: its best overlap, the anchors that stand for it, the kind of the best one."""
    import numpy as np
    import pandas as pd

    width, height = (boxes[:, 2:] - boxes[:, :2]).round().astype(int).T
    table = pd.DataFrame({"class": names, "width": width, "height": height, "best IoU": iou.max(axis=1).round(2)})
    table["positive"] = [(matches == index).sum() for index in range(len(boxes))]
    best = kinds[np.argmax(iou, axis=1)]
    table = table.assign(stride=best[:, 0].astype(int), size=best[:, 1], ratio=best[:, 2])
    return table.to_string(index=False, formatters=dict.fromkeys(("size", "ratio"), "{:g}".format))


# --------------------------------------------------------------------------------------------------------- batch


def _show_batch(arguments):
    from frcnn.data.batches import make_batch, plan_epoch
    from frcnn.data.images import write_image
    from frcnn.data.readers import read_records
    from frcnn.visualize import contact_sheet, draw_boxes

    if arguments.epochs < 1:
        raise ValueError(f"--epochs ({arguments.epochs}) must be at least 1")
    config, class_names = _load(arguments)
    records, class_names = read_records(
        arguments.path, arguments.parser, class_names, arguments.split, None, arguments.outside, arguments.images
    )
    seed = config.train.seed
    plan = plan_epoch(records, config.train.batch_size, seed, 0, shuffle=False)[:1]
    images, captions = [], []
    for epoch in range(-1, arguments.epochs):
        batch = make_batch(records, config, seed, max(epoch, 0), 0, plan=plan, augment=epoch >= 0)
        row = f"epoch {epoch + 1}" if epoch >= 0 else "not augmented"
        for image, size, boxes, labels in zip(
            *(batch[key] for key in ("images", "image_sizes", "gt_boxes", "gt_labels"))
        ):
            images.append(draw_boxes(image, boxes[labels >= 0], labels[labels >= 0], class_names))
            captions.append(f"{row}: {_by(size)} in {_by(image.shape)}")
    write_image(arguments.output, contact_sheet(images, captions, side=_CELL, columns=plan.shape[1]))
    print(", ".join(records[index].path for index in plan[0]))
    print(f"written to {arguments.output}: a row as they are, then one for each of {arguments.epochs} epochs")
    return 0
