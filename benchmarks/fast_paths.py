"""What each TensorFlow fast path of frcnn/backend gains over its portable twin: `python -m benchmarks.fast_paths`.

Both forms run in one process, taking turns, compiled as in training; a row gives their median times and the ratio.
"""

import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from frcnn import backend
from frcnn.machine import keep_freed_memory
from frcnn.ops.nms import non_max_suppression, portable_nms
from frcnn.ops.roi_align import pyramid_roi_align, roi_align

ROUNDS = 9


def main():
    """Print the table."""
    keep_freed_memory()  # as the commands do
    print(f"{'fast path':<46}{'fast':>10}{'portable':>10}{'ratio':>7}")
    for name, fast, portable in cases():
        report(name, tf.function(fast), tf.function(portable))
    return 0


def report(name, fast, portable):
    """Print one row: medians in ms over rounds in which both take their turn."""
    times = {fast: [], portable: []}
    for round_number in range(ROUNDS + 1):
        for function, seconds in times.items():
            start = time.perf_counter()
            tf.nest.map_structure(lambda tensor: tensor.numpy(), function())
            if round_number:  # the first round compiles
                seconds.append(time.perf_counter() - start)
    quick, slow = (1000 * statistics.median(seconds) for seconds in times.values())
    print(f"{name:<46}{quick:>7.1f} ms{slow:>7.1f} ms{slow / quick:>7.1f}", flush=True)


def cases():
    """Yield (name, fast function, portable function)."""
    generator = np.random.default_rng(0)
    for count, kept in ((2000, 300), (6000, 300), (12000, 2000)):
        corners = generator.uniform(0, 500, (1, count, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(10, 150, corners.shape)], -1)
        arguments = tf.constant(boxes, tf.float32), tf.constant(generator.random((1, count)), tf.float32), 0.7, kept
        yield (
            f"NMS, {count} boxes, {kept} kept",
            lambda arguments=arguments: non_max_suppression(*arguments),
            lambda arguments=arguments: portable_nms(*arguments),
        )
    for rois, backward in ((128, True), (300, False)):
        yield from roi_align_cases(generator, rois, 7, backward)
    yield from pyramid_cases(generator)
    yield from batch_norm_cases(generator)
    for shape in ((1, 150, 200, 64), (1, 38, 50, 256), (1, 150, 200, 256), (128, 7, 7, 512)):
        yield convolution_case(generator, shape)


def pyramid_cases(generator):
    """RoIAlign 7x7 on the levels of a 608x800 picture, 256 channels: forward and backward, and forward alone."""
    maps = [
        tf.constant(generator.normal(size=(1, 608 // step, 800 // step, 256)), tf.float32) for step in (4, 8, 16, 32)
    ]
    for rois, backward in ((512, True), (1000, False)):
        sides, corners = np.exp(generator.uniform(2.8, 6, (1, rois, 2))), generator.uniform(0, 400, (1, rois, 2))
        boxes = tf.constant(np.concatenate([corners, corners + sides], -1), tf.float32)

        def fast(boxes=boxes, backward=backward):
            with tf.GradientTape() as tape:
                tape.watch(maps)
                pooled = pyramid_roi_align(maps, boxes, 7, (4, 8, 16, 32))
            return tape.gradient(pooled, maps, pooled) if backward else pooled

        name = f"RoIAlign, pyramid, {rois} RoIs{', with gradient' if backward else ''}"
        yield name, fast, without_tensorflow(fast)


def without_tensorflow(function):
    """The same function, traced as on another backend."""

    def portable():
        original = backend.is_tensorflow
        backend.is_tensorflow = lambda: False
        try:
            return function()
        finally:
            backend.is_tensorflow = original

    return portable


def roi_align_cases(generator, rois, size, backward):
    """RoIAlign on a stride-16 map of a 608x800 picture, 1024 channels: forward and backward, or forward alone."""
    features = tf.constant(generator.normal(size=(1, 38, 50, 1024)), tf.float32)
    corners = generator.uniform(0, 400, (1, rois, 2))
    boxes = tf.constant(np.concatenate([corners, corners + generator.uniform(20, 200, corners.shape)], -1), tf.float32)

    def fast():
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, boxes, size, 16)
        return tape.gradient(pooled, features, pooled) if backward else pooled

    yield f"RoIAlign, {rois} RoIs{', with gradient' if backward else ''}", fast, without_tensorflow(fast)


def batch_norm_cases(generator):
    """Batch normalisation in training, forward and backward, of stage 2 on four 480x640 pictures."""
    x = tf.constant(generator.normal(size=(4, 120, 160, 64)), tf.bfloat16)
    gamma, beta = tf.ones(64), tf.zeros(64)

    def gradients(normalise):
        with tf.GradientTape() as tape:
            tape.watch((x, gamma, beta))
            y, _, _ = normalise(x, gamma, beta, 1e-5)
        return [tf.cast(gradient, tf.float32) for gradient in tape.gradient(y, (x, gamma, beta), y)]

    def fast():
        return gradients(backend.batch_normalise)

    yield "batch normalisation, (4, 120, 160, 64)", fast, without_tensorflow(fast)


def convolution_case(generator, shape):
    """A 3x3 convolution that keeps its channels, forward and backward."""
    x = tf.constant(generator.normal(size=shape), tf.float32)
    kernel = tf.constant(generator.normal(size=(3, 3, shape[-1], shape[-1])), tf.float32)

    def fast():
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            y = backend.convolve(x, kernel)
        return tape.gradient(y, (x, kernel), y)

    return f"3x3 convolution, {shape}", fast, without_tensorflow(fast)


if __name__ == "__main__":
    sys.exit(main())
