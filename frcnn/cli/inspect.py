"""Show the effective config: every field with its value and its meaning."""

from frcnn.cli import add_override_argument

EXAMPLE = "frcnn inspect config --config config/resnet50_c4.yaml train.epochs=10"


def add_arguments(parser):
    """The arguments of `frcnn inspect`."""
    parser.add_argument("what", choices=["config"], help="what to show")
    parser.add_argument("--config", metavar="YAML", help="a recipe (default: the defaults)")
    add_override_argument(parser)


def run(arguments):
    """Print the table."""
    from frcnn.config import describe_config, load_config

    print(describe_config(load_config(arguments.config, arguments.overrides)))
    return 0
