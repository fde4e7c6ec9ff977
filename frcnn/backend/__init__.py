"""The one room that names a backend: the measured fast paths, tf.data, the device and its precision."""

import contextlib
import os
import re

import keras

from frcnn.arrays import require_size
from frcnn.backend.convolution import convolve, convolves_by_tiles  # noqa: F401 (names of this room)
from frcnn.backend.device import is_tensorflow
from frcnn.machine import processor_flags

_SMALLEST = -3.0e38  # below every finite score, above -inf: what TensorFlow's NMS takes as "no candidate"
# Names of the errors of TensorFlow and PyTorch; messages of JAX, of PyTorch on a processor, of TensorFlow on a GPU.
_OUT_OF_MEMORY = re.compile(
    "ResourceExhaustedError|OutOfMemoryError|RESOURCE_EXHAUSTED"
    "|can't allocate memory|not enough memory|Dst tensor is not initialized"
)


def tensorflow_nms(boxes, scores, iou_threshold, max_outputs):
    """`ops.nms.non_max_suppression` by TensorFlow's own kernel."""
    import tensorflow as tf

    def one_picture(picture):
        # not `tf.image.non_max_suppression_padded`: a tiled algorithm that drops at IoU >= threshold
        keep, filled = tf.raw_ops.NonMaxSuppressionV4(
            boxes=picture[0],
            scores=picture[1],
            max_output_size=max_outputs,
            iou_threshold=iou_threshold,
            score_threshold=_SMALLEST,
            pad_to_max_output_size=True,
        )
        return tf.where(tf.range(max_outputs) < filled, keep, -1)

    return tf.map_fn(one_picture, (boxes, scores), fn_output_signature=tf.TensorSpec((max_outputs,), tf.int32))


def weighted_rows(rows, indices, weights):
    """Sums of rows: result[m] = sum over n of weights[m, n] * rows[indices[m, n]].

    On TensorFlow a product with a sparse matrix, whose gradient is another, on PyTorch a bag of embeddings: no row is
    copied before it is added.

    Args:
        rows: (N, C) float32; the only one that gets a gradient.
        indices, weights: (M, n) int32, (M, n) float32.

    Returns:
        (M, C) float32.
    """
    if keras.backend.backend() == "torch":
        import torch

        return torch.nn.functional.embedding_bag(indices, rows, per_sample_weights=weights, mode="sum")
    if not is_tensorflow():  # one of n after the other: all their rows at once would be n times the result

        def add(total, one):
            places, shares = one
            return total + keras.ops.take(rows, places, axis=0) * shares[:, None], None

        nothing = keras.ops.zeros((keras.ops.shape(indices)[0], rows.shape[1]))
        return keras.ops.scan(add, nothing, (keras.ops.transpose(indices), keras.ops.transpose(weights)))[0]
    import tensorflow as tf

    # Not `tf.sparse.sparse_dense_matmul`, which takes one thread and six times as long.
    count, width = tf.unstack(tf.shape(indices, tf.int64))
    places = [tf.repeat(tf.range(count), width), tf.cast(tf.reshape(indices, (-1,)), tf.int64)]
    matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.stack(places, 1),
        values=tf.reshape(weights, (-1,)),
        dense_shape=tf.stack([count, tf.shape(rows, tf.int64)[0]]),
    )

    @tf.custom_gradient
    def product(rows):
        def gradient(upstream):
            # not the product's `transpose_a`, which adds in any order
            turned = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
            return tf.raw_ops.SparseMatrixMatMul(a=turned, b=upstream)

        sums = tf.raw_ops.SparseMatrixMatMul(a=matrix, b=rows)
        return tf.ensure_shape(sums, (None, rows.shape[1])), gradient

    return product(rows)


def top_k(x, k):
    """The largest values along the last axis and their indices (int32); of equal values the lower index goes first.

    So TensorFlow's and JAX's own kernels do; PyTorch's takes any of them, another on another device.
    """
    if keras.backend.backend() != "torch":
        values, indices = keras.ops.top_k(x, k)
        return values, keras.ops.cast(indices, "int32")
    indices = keras.ops.argsort(-x, axis=-1)[..., :k]  # stable
    return keras.ops.take_along_axis(x, indices, axis=-1), indices


def batch_normalise(x, gamma, beta, epsilon):
    """Normalise by the statistics of the batch (Ioffe and Szegedy 2015); TensorFlow's fused kernel where it is there.

    Args:
        x: (B, h, w, C) float; statistics are float32.
        gamma, beta: (C,) float32.
        epsilon: added to the variance.

    Returns:
        y like `x`, mean (C,) float32, variance (C,) float32, unbiased as torchvision stores it.
    """
    if is_tensorflow():
        import tensorflow as tf

        gamma, beta = map(keras.ops.convert_to_tensor, (gamma, beta))  # a Keras variable is no tensor to a raw kernel
        return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon, is_training=True)[:3]
    ops = keras.ops
    wide = ops.cast(x, "float32")
    mean, variance = ops.moments(wide, axes=(0, 1, 2))
    scale = gamma * ops.rsqrt(variance + epsilon)
    count = ops.cast(ops.size(x) // x.shape[-1], "float32")
    unbiased = variance * count / ops.maximum(count - 1.0, 1.0)
    return ops.cast(wide * scale + (beta - mean * scale), x.dtype), mean, unbiased


def bfloat16_is_native():
    """Whether this machine multiplies bfloat16 in hardware: AMX, AVX512-BF16, a GPU of compute capability 8.0 up."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_capability() >= (8, 0)
    elif backend == "tensorflow":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0)
    elif backend == "jax":
        import jax

        device = jax.devices()[0]
        if device.platform != "cpu":  # a TPU has no compute capability, but bfloat16
            return not re.match(r"[1-7]\.", getattr(device, "compute_capability", ""))
    return processor_flags() & {"amx_bf16", "avx512_bf16"} != set()


def start_device():
    """Let a GPU's memory grow with need, as TensorFlow allows before the first tensor only; return `device_name()`."""
    if is_tensorflow():
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    return device_name()


def device_name():
    """What Keras computes on, of several GPUs the first: "jax on CPU", "torch on NVIDIA H100, the first of 2"."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    elif backend == "jax":
        import jax

        names = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    else:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    several = f", the first of {len(names)}" if len(names) > 1 else ""
    return f"{backend} on {names[0] if names else 'CPU'}{several}"


def assign_if(condition, assign, variables):
    """Call `assign()`, which assigns to these Keras variables; they keep their values where the condition is false.

    Args:
        condition: () bool tensor.
        assign: function without arguments; its result is not used.
        variables: all that it may assign to.
    """
    if is_tensorflow():
        import tensorflow as tf

        tf.cond(condition, lambda: (assign(), tf.constant(True))[1], lambda: tf.constant(False))
    elif keras.backend.backend() == "torch":
        if condition:
            assign()
    else:
        before = [variable.value for variable in variables]
        assign()
        for variable, value in zip(variables, before):
            variable.assign(keras.ops.where(condition, variable.value, value))


def step_or_nothing(model, step, arguments):
    """Run a Keras model's own `train_step`; where its optimizer refuses the gradients, nothing is changed.

    Args:
        model: a `frcnn.models.guarded.GuardedModel`, compiled with an optimizer of `frcnn.optimizer`, which does not
            count a step that it refuses.
        step: the `train_step`.
        arguments: of it: on JAX state and data, elsewhere data.

    Returns:
        What `step` returns, with the moving statistics and the metrics of before where the optimizer refused.
    """
    optimizer, counter = model.optimizer, model.skipped_steps
    if keras.backend.backend() == "jax":
        return _stateless_step_or_nothing(model, step, *arguments)
    variables = [*model.non_trainable_variables, *model.metrics_variables]
    before = [keras.ops.copy(variable) for variable in (*variables, optimizer.iterations)]
    step(*arguments)
    is_done = keras.ops.not_equal(optimizer.iterations, before.pop())
    for variable, value in zip(variables, before):
        variable.assign(keras.ops.where(is_done, variable, value))
    counter.update_state(keras.ops.logical_not(is_done))
    return model.get_metrics_result()


def _stateless_step_or_nothing(model, step, state, data):
    _, (weights, others, slots, metrics) = step(state, data)
    place = next(i for i, variable in enumerate(model.optimizer.variables) if variable is model.optimizer.iterations)
    is_done = keras.ops.not_equal(slots[place], state[2][place])

    def kept(after, before):
        return [keras.ops.where(is_done, new, old) for new, old in zip(after, before)]

    mapping = list(zip(model.metrics_variables, kept(metrics, state[3])))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        model.skipped_steps.update_state(keras.ops.logical_not(is_done))
        logs = model.get_metrics_result()
    metrics = [scope.get_current_value(variable) for variable in model.metrics_variables]
    return logs, (weights, kept(others, state[1]), slots, metrics)


def make_deterministic(seed):
    """Have the same steps give the same bits, where that costs speed; before the first tensor.

    Args:
        seed: of what Keras and its backend draw.
    """
    keras.utils.set_random_seed(seed)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif backend == "torch":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or PyTorch refuses matrix products on a GPU
        torch.use_deterministic_algorithms(True)
    elif "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):  # read when JAX first computes
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def is_out_of_memory(error):
    """Whether an exception says that memory ran out: Python's, TensorFlow's, JAX's or PyTorch's, of any device."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))


@contextlib.contextmanager
def explaining_out_of_memory(explain):
    """Raise MemoryError with the text that `explain()` gives, where memory runs out in the block."""
    try:
        yield
    except Exception as error:  # each backend has its own
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"memory ran out{explain()}") from error


def free_gpu_memory():
    """Bytes that this process may come to hold on the first GPU; None on TensorFlow, which does not tell."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    if backend == "jax":
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return None


def training_data(make_generator, example):
    """What `fit` takes: a `tf.data.Dataset` with free picture sizes on TensorFlow, else the generator itself.

    Keras's own TensorFlow adapter fixes picture sizes from the first two batches.

    Args:
        make_generator: function without arguments that returns a generator of `(batch,)`, batch a dict of arrays, or of
            tuples of arrays.
        example: one such dict or tuple; every dimension may vary in later ones but a last one of 2, 3 or 4.
    """
    if not is_tensorflow():
        return (batch for batch in make_generator())  # `fit` takes a true generator, no other iterator
    import tensorflow as tf

    def spec(array):
        fixed = array.ndim > 1 and array.shape[-1] in (2, 3, 4)  # sizes, channels, box corners
        return tf.TensorSpec([None] * (array.ndim - fixed) + [array.shape[-1]] * fixed, array.dtype)

    signature = keras.tree.map_structure(spec, example if isinstance(example, tuple) else (example,))
    # No prefetch: the batches are made ahead already, and the wait for them is measured where they are drawn.
    options = tf.data.Options()
    options.autotune.enabled = False  # nothing to tune, and its thread has kept an interrupted process from ending
    return tf.data.Dataset.from_generator(make_generator, output_signature=signature).with_options(options)


def read_torch_weights(path):
    """Read a PyTorch state dict as {name: array}, without executing anything that stands in the file.

    Raises:
        ValueError: PyTorch is missing, or the file is damaged or holds anything but tensors.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ValueError("needs PyTorch to be read: pip install torch, or save it as .safetensors") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        require_size(sum(4 * tensor.numel() for tensor in state.values()))  # one value may stand for any number
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    except Exception as error:  # what damaged bytes raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"no state dict of tensors, or damaged: {reason}") from error
