"""Detect objects in a folder of pictures: `python test_frcnn.py -p folder/`. `frcnn detect` with ./config.pickle."""

import sys
from pathlib import Path

from frcnn.cli import main

if __name__ == "__main__":
    here = ["--config_filename", "config.pickle"] if Path("config.pickle").is_file() else []
    sys.exit(main(["detect", *here, *sys.argv[1:]]))
