"""Convolutions, whose gradients on a processor with TensorFlow are our own: faster, and of written memory only."""

import functools

import keras

from frcnn.backend.device import has_gpu, is_tensorflow
from frcnn.ops import winograd

_WIDE, _MANY_TILES = 256, 100  # channels, tiles: from there on Winograd's products save more than they cost
# Widths of bfloat16 maps whose kernel gradient was found right: multiples of the one, up to the other.
_CLEAN_STEP, _CLEAN_WIDTH = 32, 320


def convolve(x, kernel, strides=1, padding="same"):
    """Convolution with a square kernel, for stride 1 and padding "same" one of odd size.

    On a processor with TensorFlow, whose kernels for a convolution's gradients are slower than the forward one, that
    for `x` is a convolution too, of the upstream gradient with the kernel turned by 180 degrees, and that for a 1x1
    kernel a matrix product. There `ops.winograd` does 3x3 kernels of many channels on maps of many tiles: all in
    float32, and of bfloat16, whose own products are as fast, the gradient for the kernel. All other kernel gradients
    of bfloat16 are made so that TensorFlow reads no memory that nobody wrote (docs/bfloat16_gradient.md).

    Args:
        x: (B, h, w, C).
        kernel: (n, n, C, filters) in the dtype of `x`.
        strides: along both sides.
        padding: "same" or "valid", as Keras has it.

    Returns:
        (B, h', w', filters).
    """
    if not is_tensorflow() or has_gpu():
        return keras.ops.conv(x, kernel, strides, padding)
    if strides == 1 and padding == "same":
        return _convolve_same_size(x, kernel)
    if x.dtype != "bfloat16" or kernel.shape[0] == 1:
        return keras.ops.conv(x, kernel, strides, padding)
    return _convolve_strided(x, kernel, {"strides": [1, strides, strides, 1], "padding": padding.upper()})


def _convolve_same_size(x, kernel):
    import tensorflow as tf

    @tf.custom_gradient
    def forward(x, kernel):
        is_wide = _is_wide(kernel.shape)
        y, values = _by_size(_convolve, is_wide, x, kernel)

        def gradient(upstream):
            turned = tf.transpose(tf.reverse(kernel, [0, 1]), (0, 1, 3, 2))
            slopes, _ = _by_size(_convolve, is_wide, upstream, turned)
            return slopes, _by_size(_kernel_gradient, is_wide, x, values, upstream, kernel.shape[0])

        return y, gradient

    return forward(x, keras.ops.convert_to_tensor(kernel))


def _convolve_strided(x, kernel, settings):
    """In bfloat16, with the kernel's gradient in float32: only stride 1 is known to be right in bfloat16."""
    import tensorflow as tf

    @tf.custom_gradient
    def forward(x, kernel):
        def gradient(upstream):
            sizes = {"input_sizes": tf.shape(x), "filter": kernel, "out_backprop": upstream}
            slopes = tf.ensure_shape(tf.raw_ops.Conv2DBackpropInput(**sizes, **settings), x.shape)
            return slopes, _kernel_gradient_in_float32(x, upstream, kernel.shape, **settings)

        return tf.nn.conv2d(x, kernel, **settings), gradient

    return forward(x, keras.ops.convert_to_tensor(kernel))


def convolves_by_tiles(shape, kernel_shape, dtype):
    """Whether `convolve` takes `ops.winograd` all through for a map and a kernel; the shapes are ints."""
    on_processor = is_tensorflow() and not has_gpu()
    return on_processor and dtype == "float32" and _is_wide(kernel_shape) and _has_many_tiles(shape)


def _is_wide(kernel_shape):
    return kernel_shape[0] == 3 and min(kernel_shape[2:]) >= _WIDE


def _has_many_tiles(shape):
    return winograd.tile_count(shape) >= _MANY_TILES


def _by_size(compute, is_wide, x, *others):
    """`compute(by_tiles, x, *others)`, as suits a map's size, which may not be known before the step runs."""
    if not is_wide:
        return compute(False, x, *others)
    if all(x.shape):
        return compute(_has_many_tiles(x.shape), x, *others)
    return _traced_once(compute)(x, *others)


@functools.cache
def _traced_once(compute):
    """One trace of both ways for all maps of as many channels: one for each convolution makes the first step late."""
    import tensorflow as tf

    @tf.function(autograph=False, experimental_attributes={"_noinline": True})
    def choose(x, *others):
        by_tiles, directly = (functools.partial(compute, way, x, *others) for way in (True, False))
        return tf.cond(_has_many_tiles(tf.unstack(tf.shape(x))), by_tiles, directly)

    def with_known_shapes(*tensors):
        # TensorFlow's graph optimizers infer no shape through such a call, and one of oneDNN's aborts the process.
        return tf.nest.map_structure(lambda result: tf.ensure_shape(result, result.shape), choose(*tensors))

    return with_known_shapes


def _convolve(by_tiles, x, kernel):
    import tensorflow as tf

    if by_tiles and x.dtype == tf.float32:
        return winograd.convolve(x, kernel)
    return tf.nn.conv2d(x, kernel, 1, "SAME"), tf.zeros((0, 0, x.shape[-1]))  # no values for the gradient


def _kernel_gradient(by_tiles, x, values, upstream, size):
    import tensorflow as tf

    if by_tiles:
        if x.dtype != tf.float32:
            values = winograd.values_at_points(tf.cast(x, tf.float32))
        return tf.cast(winograd.kernel_gradient(values, tf.cast(upstream, tf.float32)), x.dtype)
    shape = (size, size, x.shape[-1], upstream.shape[-1])
    if size > 1 and x.dtype == tf.bfloat16:
        return _bfloat16_kernel_gradient(x, upstream, shape)
    if size > 1:
        maps = {"input": x, "out_backprop": upstream, "filter_sizes": shape}
        return tf.raw_ops.Conv2DBackpropFilter(**maps, strides=[1] * 4, padding="SAME")
    x, upstream = (tf.reshape(cells, (-1, count)) for cells, count in zip((x, upstream), shape[2:]))
    if shape[2] > shape[3]:  # the product with fewer rows is the faster one
        return tf.reshape(tf.transpose(tf.matmul(upstream, x, transpose_a=True)), shape)
    return tf.reshape(tf.matmul(x, upstream, transpose_a=True), shape)


def _bfloat16_kernel_gradient(x, upstream, shape):
    """Of a convolution of stride 1 and padding "same", on maps as wide as a multiple of `_CLEAN_STEP`.

    On maps of other widths oneDNN's kernel multiplies columns that it has not written by 0, which gives NaN where NaN
    happens to lie there (docs/bfloat16_gradient.md). Columns of zeros leave the gradient as it is.
    """
    import tensorflow as tf

    def widened():
        added = [[0, 0], [0, 0], [0, -tf.shape(x)[2] % _CLEAN_STEP], [0, 0]]
        maps = {"input": tf.pad(x, added), "out_backprop": tf.pad(upstream, added), "filter_sizes": shape}
        return tf.raw_ops.Conv2DBackpropFilter(**maps, strides=[1] * 4, padding="SAME")

    in_float32 = functools.partial(_kernel_gradient_in_float32, x, upstream, shape, [1] * 4, "SAME")
    if x.shape[2] is not None:
        return widened() if x.shape[2] <= _CLEAN_WIDTH else in_float32()
    return tf.cond(tf.shape(x)[2] <= _CLEAN_WIDTH, widened, in_float32)


def _kernel_gradient_in_float32(x, upstream, shape, strides, padding):
    import tensorflow as tf

    maps = {"input": tf.cast(x, tf.float32), "out_backprop": tf.cast(upstream, tf.float32), "filter_sizes": shape}
    return tf.cast(tf.raw_ops.Conv2DBackpropFilter(**maps, strides=strides, padding=padding), x.dtype)
