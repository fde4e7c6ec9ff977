"""From files to batches: numpy, OpenCV and pandas only, so that no backend is loaded by reading data."""
