"""Train a detector: `python train_frcnn.py -p annotations.txt`. The same as `frcnn train`."""

import sys

from frcnn.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
