"""Tensors, gradients and compilation, the same words on every backend of Keras."""

import functools

import keras
import numpy as np


def tensor(values, dtype="float32"):
    return keras.ops.convert_to_tensor(np.asarray(values, dtype))


def array(x):
    """One tensor, or each of a tuple, as numpy."""
    if isinstance(x, tuple | list):
        return tuple(map(array, x))
    return keras.ops.convert_to_numpy(x)


def gradient(function, x):
    """Gradient of a function with one number as its result, at the array `x`, as numpy; 0 where there is no path."""
    backend, x = keras.backend.backend(), tensor(x)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            result = function(x)
        found = tape.gradient(result, x)
    elif backend == "jax":
        import jax

        found = jax.jit(jax.grad(function))(x)
    else:
        import torch

        x = x.detach().requires_grad_()
        result = function(x)
        found = torch.autograd.grad(result, x, allow_unused=True)[0] if result.requires_grad else None
    return np.zeros(x.shape, np.float32) if found is None else array(found)


@functools.cache
def bound(function, **settings):
    """The function with its settings. JAX compiles it: without, it would compile every loop anew at each call."""
    function = functools.partial(function, **settings)
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def compiled(function, *inputs, free=2):
    """Call a function as `fit` would: traced by TensorFlow or JAX; PyTorch has nothing to trace.

    On TensorFlow the first `free` dimensions of every input have no static size, but for the 4 of boxes.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def free_sizes(x):
            sizes = [None] * min(free, len(x.shape)) + list(x.shape[free:])
            return tf.TensorSpec([*sizes[:-1], 4 if x.shape[-1] == 4 else sizes[-1]], x.dtype)

        return array(tf.function(function, input_signature=list(map(free_sizes, inputs)))(*inputs))
    if backend == "jax":
        import jax

        return array(jax.jit(function)(*inputs))
    return array(function(*inputs))
