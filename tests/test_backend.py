import builtins
import functools
import io
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from frcnn import backend
from frcnn.backend import convolution
from frcnn.ops import winograd
from tests.oracles.tensors import array, gradient, tensor


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(np.float32)


def test_both_forms_of_batch_normalise_agree(monkeypatch):
    x, gamma, beta = tensor(noise(3, 5, 4, 6)), tensor(noise(6, seed=1)), tensor(noise(6, seed=2))
    native = array(backend.batch_normalise(x, gamma, beta, 1e-3))
    monkeypatch.setattr(backend, "is_tensorflow", lambda: False)
    portable = array(backend.batch_normalise(x, gamma, beta, 1e-3))
    for first, second in zip(native, portable):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(portable[2], array(x).var(axis=(0, 1, 2), ddof=1), rtol=1e-4)


def calls_of_winograd(monkeypatch):
    """The list to which each call of its functions from now on adds its name."""
    calls = []
    for name in ("convolve", "kernel_gradient"):
        own = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *given, n=name, own=own: calls.append(n) or own(*given))
    return calls


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 2, 2, 8), (3, 7, 4, 3)])
@pytest.mark.parametrize("is_by_tiles", [False, True])
def test_a_convolution_and_its_gradients_are_kerass_own(monkeypatch, size, shape, is_by_tiles):
    """Gradients of a weighted sum, so that no place or channel stands for another."""
    if is_by_tiles:
        monkeypatch.setattr(convolution, "_WIDE", 0)
        monkeypatch.setattr(convolution, "_MANY_TILES", 0)
    x, kernel = tensor(noise(*shape)), tensor(noise(size, size, shape[-1], 5, seed=1))
    weights = tensor(noise(*shape[:-1], 5, seed=2))

    def slopes(convolve):
        def total(x, kernel):
            return keras.ops.sum(convolve(x, kernel) * weights)

        return gradient(lambda x: total(x, kernel), x), gradient(lambda kernel: total(x, kernel), kernel)

    def kerass(x, kernel):
        return keras.ops.conv(x, kernel, padding="same")

    np.testing.assert_allclose(array(backend.convolve(x, kernel)), array(kerass(x, kernel)), rtol=1e-4, atol=1e-3)
    for slope, expected in zip(slopes(backend.convolve), slopes(kerass)):
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("cells", "channels", "dtype", "by_tiles"),
    [
        ((1, 36, 40), 256, "float32", []),
        ((1, 37, 40), 256, "float32", ["convolve", "convolve", "kernel_gradient"]),
        ((25, 7, 7), 256, "float32", ["convolve", "convolve", "kernel_gradient"]),
        ((1, 37, 40), 255, "float32", []),
        ((1, 36, 40), 256, "bfloat16", []),
        ((1, 37, 40), 256, "bfloat16", ["kernel_gradient"]),
    ],
)
def test_wide_kernels_on_many_tiles_convolve_by_tiles_in_any_shape(monkeypatch, cells, channels, dtype, by_tiles):
    import tensorflow as tf

    calls = calls_of_winograd(monkeypatch)
    x = keras.ops.cast(tensor(noise(*cells, channels)), dtype)
    kernel = keras.ops.cast(tensor(noise(3, 3, channels, 256, seed=1)), dtype)

    def result_and_slopes(x):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = backend.convolve(x, kernel)
        return y, *tape.gradient(y, [x, kernel])

    fixed = result_and_slopes(x)
    assert calls == by_tiles
    assert {result.dtype.name for result in fixed} == {dtype}
    free = tf.function(result_and_slopes, input_signature=[tf.TensorSpec((None, None, None, channels), dtype)])
    for own_result, expected in zip(free(x), fixed):
        own_result, expected = (array(keras.ops.cast(result, "float32")) for result in (own_result, expected))
        np.testing.assert_allclose(own_result, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.tensorflow
def test_convolutions_of_maps_of_unknown_size_are_traced_once(monkeypatch):
    import tensorflow as tf

    calls = calls_of_winograd(monkeypatch)
    convolution._traced_once.cache_clear()
    kernels = [tensor(noise(3, 3, 256, 256, seed=seed)) for seed in range(3)]

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 256))])
    def slopes(x):
        with tf.GradientTape() as tape:
            tape.watch([x, *kernels])
            y = functools.reduce(backend.convolve, kernels, x)
        return tape.gradient(y, [x, *kernels])

    slopes.get_concrete_function()
    assert calls == ["convolve", "kernel_gradient"]


@pytest.mark.tensorflow
def test_a_bfloat16_kernels_gradient_by_tiles_is_that_of_float32_rounded(monkeypatch):
    import tensorflow as tf

    x, upstream = (keras.ops.cast(tensor(noise(1, 37, 40, 256, seed=seed)), "bfloat16") for seed in (0, 1))
    kernel = keras.ops.cast(tensor(noise(3, 3, 256, 256, seed=2)), "bfloat16")

    def slope(*tensors):
        x, kernel, upstream = tensors
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = backend.convolve(x, kernel)
        return array(keras.ops.cast(tape.gradient(y, kernel, upstream), "float32"))

    found = slope(x, kernel, upstream)
    monkeypatch.setattr(convolution, "_MANY_TILES", 1000)
    expected = slope(*(keras.ops.cast(one, "float32") for one in (x, kernel, upstream)))
    np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-5 * np.abs(expected).max())


@pytest.mark.tensorflow
def test_a_convolution_has_its_own_gradient_on_a_processor_only(monkeypatch):
    import tensorflow as tf

    x, kernel = tensor(noise(1, 4, 4, 2)), tensor(noise(3, 3, 2, 2))

    def has_tensorflows_gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = backend.convolve(x, kernel)
        graph = tf.function(lambda upstream: tape.gradient(y, x, upstream)).get_concrete_function(y).graph
        return any(operation.type == "Conv2DBackpropInput" for operation in graph.get_operations())

    assert not has_tensorflows_gradient()
    monkeypatch.setattr(convolution, "has_gpu", lambda: True)
    assert has_tensorflows_gradient()


def test_batch_normalise_of_bfloat16_keeps_float32_statistics():
    x = keras.ops.cast(tensor(noise(2, 5, 4, 6)), "bfloat16")
    results = backend.batch_normalise(x, tensor(np.ones(6)), tensor(np.zeros(6)), 1e-3)
    assert [keras.backend.standardize_dtype(result.dtype) for result in results] == ["bfloat16", "float32", "float32"]


@pytest.mark.parametrize("portable", [False, True])
def test_weighted_rows_by_hand(monkeypatch, portable):
    if portable:
        monkeypatch.setattr(backend, "is_tensorflow", lambda: False)
    rows = np.array([[1, 2], [10, 20], [100, 200]])
    inputs = tensor([[2, 0], [1, 1]], "int32"), tensor([[0.5, 3], [1, -2]])
    assert array(backend.weighted_rows(tensor(rows), *inputs)).tolist() == [[53, 106], [-10, -20]]
    slope = gradient(lambda x: keras.ops.sum(backend.weighted_rows(x, *inputs) * tensor([[1, 0], [0, 1]])), rows)
    assert slope.tolist() == [[3, 0], [0, -1], [0.5, 0]]


# ---------------------------------------------------------------------------------------------------- the data


def batches(sizes, slots=(8, 8, 16)):
    for number, (height, width) in enumerate(sizes):
        yield ({
            "images": np.full((2, height, width, 3), number, np.uint8),
            "image_sizes": np.full((2, 2), number, np.int32),
            "gt_boxes": np.full((2, slots[number], 4), number, np.float32),
            "gt_labels": np.full((2, slots[number]), number, np.int32),
            "sampling_seeds": np.full((2,), number, np.int32),
        },)  # fmt: skip


SIZES = [(64, 64), (64, 96), (96, 32)]


@pytest.mark.tensorflow
def test_training_data_of_tensorflow_leaves_sizes_free():
    import tensorflow as tf

    example = next(batches(SIZES))[0]
    data = backend.training_data(lambda: batches(SIZES), example)
    assert isinstance(data, tf.data.Dataset)
    assert data.options().autotune.enabled is False  # else its thread may keep an interrupted process from ending
    (spec,) = data.element_spec
    assert {name: tuple(part.shape) for name, part in spec.items()} == {
        "images": (None, None, None, 3),
        "image_sizes": (None, 2),
        "gt_boxes": (None, None, 4),
        "gt_labels": (None, None),
        "sampling_seeds": (None,),
    }
    assert {name: part.dtype.name for name, part in spec.items()} == {
        name: str(value.dtype) for name, value in example.items()
    }
    for (found,), (given,) in zip(data.as_numpy_iterator(), batches(SIZES), strict=True):
        assert all(np.array_equal(found[name], given[name]) for name in given)


def test_training_data_elsewhere_is_a_true_generator(monkeypatch):
    """`fit` refuses any other iterator."""
    import types

    monkeypatch.setattr(backend, "is_tensorflow", lambda: False)
    data = backend.training_data(lambda: iter([1, 2, 3]), None)
    assert isinstance(data, types.GeneratorType)
    assert list(data) == [1, 2, 3]


# -------------------------------------------------------------------------------------------------- the device


@pytest.mark.parametrize(
    ("flags", "native"),
    [("fpu avx512_bf16 sse", True), ("fpu amx_bf16 amx_int8", True), ("fpu avx512f avx2", False), ("", False)],
)
@pytest.mark.tensorflow
def test_bfloat16_is_native_where_the_processor_says_so(monkeypatch, flags, native):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    text = f"processor: 0\nflags\t\t: {flags}\nbugs: avx512_bf16_is_no_flag_here\n"
    true_open = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, *rest: io.StringIO(text) if path == "/proc/cpuinfo" else true_open(path, *rest)
    )
    assert backend.bfloat16_is_native() is native


@pytest.fixture
def on(monkeypatch):
    """Pretend to run on a backend whose GPUs have these names: on("jax", ["NVIDIA H100"], capability="9.0")."""

    def pretend(name, gpus=(), capability="8.0"):
        monkeypatch.setattr(keras.backend, "backend", lambda: name)
        monkeypatch.setitem(sys.modules, name, FAKES[name](gpus, capability))

    return pretend


def fake_tensorflow(gpus, capability):
    details = {"compute_capability": tuple(map(int, capability.split(".")))} if capability else {}
    grown = []
    experimental = SimpleNamespace(
        get_device_details=lambda gpu: {"device_name": gpu, **details},
        set_memory_growth=lambda gpu, enable: grown.append((gpu, enable)),
    )
    return SimpleNamespace(
        config=SimpleNamespace(list_physical_devices=lambda kind: list(gpus), experimental=experimental), grown=grown
    )


def fake_jax(gpus, capability):
    known = {"platform": "gpu", "compute_capability": capability, "memory_stats": lambda: {"bytes_limit": 70}}
    devices = [SimpleNamespace(device_kind=gpu, **known) for gpu in gpus]
    return SimpleNamespace(devices=lambda: devices or [SimpleNamespace(platform="cpu", device_kind="cpu")])


def fake_torch(gpus, capability):
    cuda = {
        "is_available": lambda: bool(gpus),
        "device_count": lambda: len(gpus),
        "get_device_name": lambda index: gpus[index],
        "get_device_capability": lambda: tuple(map(int, capability.split("."))),
        "mem_get_info": lambda: (60, 100),
        "memory_reserved": lambda: 9,
    }
    return SimpleNamespace(cuda=SimpleNamespace(**cuda))


FAKES = {"tensorflow": fake_tensorflow, "jax": fake_jax, "torch": fake_torch}


@pytest.mark.parametrize("name", FAKES)
@pytest.mark.parametrize(("capability", "native"), [("8.0", True), ("9.0", True), ("10.0", True), ("7.5", False)])
def test_bfloat16_is_native_from_compute_capability_8_on(on, name, capability, native):
    on(name, ["a GPU"], capability)
    assert backend.bfloat16_is_native() is native


def test_bfloat16_where_no_compute_capability_is_known(on):
    on("tensorflow", ["another maker's GPU"], "")
    assert not backend.bfloat16_is_native()
    on("jax", ["another maker's GPU"], "gfx942")
    assert backend.bfloat16_is_native()


def test_the_device_is_named_with_its_backend():
    assert backend.start_device().startswith(f"{keras.backend.backend()} on ")


@pytest.mark.parametrize("name", FAKES)
def test_gpus_are_named(on, name):
    for gpus, device in (
        ([], "CPU"),
        (["NVIDIA H100"], "NVIDIA H100"),
        (["NVIDIA T4", "NVIDIA H100"], "NVIDIA T4, the first of 2"),
    ):
        on(name, gpus)
        assert backend.start_device() == backend.device_name() == f"{name} on {device}"


@pytest.mark.parametrize(("name", "free"), [("tensorflow", None), ("jax", 70), ("torch", 60 + 9)])
def test_what_is_free_on_a_gpu_counts_what_the_process_has(on, name, free):
    on(name, ["NVIDIA H100"])
    assert backend.free_gpu_memory() == free


def test_only_the_start_touches_the_memory_of_tensorflows_gpus(on):
    """Once tensors exist TensorFlow refuses it, and a run's files name the device after its model is built."""
    on("tensorflow", ["one", "two"])
    grown = sys.modules["tensorflow"].grown
    backend.device_name()
    assert grown == []
    backend.start_device()
    assert grown == [("one", True), ("two", True)]


# ------------------------------------------------------------------------------------ shapes that leave fast paths


def inferred_shapes(function, *specs):
    """Shapes of a function's results as TensorFlow's C++ infers them from the graph alone, as its optimizers do."""
    import tensorflow as tf

    traced = tf.function(function, input_signature=specs).get_concrete_function().graph
    with tf.Graph().as_default():
        names = [result.name for result in traced.outputs]
        return [result.shape for result in tf.import_graph_def(traced.as_graph_def(), return_elements=names)]


def gradients_of(function, *watched):
    """A function that gives what `function` does and its gradients for the inputs of these indices."""
    import tensorflow as tf

    def both(*inputs):
        with tf.GradientTape() as tape:
            tape.watch([inputs[index] for index in watched])
            result = function(*inputs)
        return result, *tape.gradient(result, [inputs[index] for index in watched])

    return both


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("size", "channels", "filters", "settings"),
    [
        (1, 8, 16, ()),
        (3, 8, 16, ()),
        (3, 512, 16, ()),
        (3, 256, 256, ()),  # wide enough for tiles
        (3, 8, 16, (2, "valid")),
        (7, 3, 16, (2, "valid")),
        (3, 8, 16, (1, "valid")),
    ],
)
def test_a_convolution_of_unknown_size_keeps_rank_and_channels(dtype, size, channels, filters, settings):
    """What loses them may abort the process in a pass of oneDNN's over the graph."""
    import tensorflow as tf

    specs = tf.TensorSpec((None, None, None, channels), dtype), tf.TensorSpec((size, size, channels, filters), dtype)
    convolve = gradients_of(lambda x, kernel: backend.convolve(x, kernel, *settings), 0, 1)
    y, slopes, kernel_slopes = inferred_shapes(convolve, *specs)
    assert y.rank == slopes.rank == 4 and (y[-1], slopes[-1]) == (filters, channels)
    assert kernel_slopes.as_list() == [size, size, channels, filters]


@pytest.mark.tensorflow
def test_the_other_fast_paths_keep_rank_and_channels():
    import tensorflow as tf

    def spec(*shape, dtype="float32"):
        return tf.TensorSpec(shape, dtype)

    weighted = gradients_of(backend.weighted_rows, 0)
    shapes = inferred_shapes(weighted, spec(None, 8), spec(None, 16, dtype="int32"), spec(None, 16))
    assert [shape.as_list() for shape in shapes] == [[None, 8], [None, 8]]
    keep = inferred_shapes(lambda b, s: backend.tensorflow_nms(b, s, 0.5, 7), spec(None, None, 4), spec(None, None))
    assert [shape.as_list() for shape in keep] == [[None, 7]]
    values, indices = inferred_shapes(lambda x: backend.top_k(x, 5), spec(None, None))
    assert values.as_list() == indices.as_list() == [None, 5]
    inputs = spec(None, None, None, 8), spec(8), spec(8)
    normalised = gradients_of(lambda x, gamma, beta: backend.batch_normalise(x, gamma, beta, 1e-3)[0], 0, 1)
    y, slopes, gammas = inferred_shapes(normalised, *inputs)
    assert y[-1] == slopes[-1] == 8 and y.rank == slopes.rank == 4 and gammas.as_list() == [8]
