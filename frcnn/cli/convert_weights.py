"""Make a run folder of a detector of torchvision's: `frcnn detect` and training take it at once."""

from frcnn.cli import add_override_argument

EXAMPLE = "frcnn convert-weights coco runs/coco"


def add_arguments(parser):
    """The arguments of `frcnn convert-weights`."""
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="state dict of fasterrcnn_resnet50_fpn or its _v2 (.pth, .safetensors, .npz); coco, coco-v2: downloaded",
    )
    add("output", metavar="OUT", help="run folder to create")
    add("--classes", nargs="+", metavar="NAME", help="its classes in the order of its labels (default: COCO's)")
    add_override_argument(parser)


def run(arguments):
    """Read, check, write, say what was loaded."""
    from frcnn.weights import convert

    print(convert(arguments.source, arguments.output, arguments.classes, arguments.overrides))
    print(f"detect with: frcnn detect -p FOLDER --run {arguments.output}")
    return 0
