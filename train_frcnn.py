"""Train a detector: `python train_frcnn.py -p annotations.txt`. `frcnn train` with keras-frcnn's output files."""

import sys

from frcnn.cli import main

FILES = ["--config_filename", "config.pickle", "--output_weight_path", "model_frcnn.hdf5"]

if __name__ == "__main__":
    sys.exit(main(["train", *FILES, *sys.argv[1:]]))
