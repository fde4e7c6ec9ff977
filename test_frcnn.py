"""Detect objects in a folder of pictures: `python test_frcnn.py -p folder/`. The same as `frcnn detect`."""

import sys

from frcnn.cli import main

if __name__ == "__main__":
    sys.exit(main(["detect", *sys.argv[1:]]))
