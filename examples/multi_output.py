"""Three inputs, five outputs, two of them losses: the multi-output pattern of keras-frcnn's time in today's Keras.

    picture, true_class, true_box -> class_logits, class_scores, box, class_loss, box_loss

Two Lambda layers compute the losses inside the model, from its predictions and from ground truth that is an input like
the picture. A generator yields the batches. It learns where a rectangle lies in a picture, and whether it is tall or
wide. The same file runs with TensorFlow, JAX (KERAS_BACKEND=jax) and PyTorch (KERAS_BACKEND=torch).
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, ops

SIDE, BATCH = 32, 32
LOSSES = ("class_loss", "box_loss")


def class_loss(inputs):
    """(class_logits (B, 2), true_class (B,) int32) -> (B,) cross-entropy."""
    logits, labels = inputs
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def box_loss(inputs):
    """(box (B, 4), true_box (B, 4)) -> (B,) mean absolute error, as a share of the picture's side."""
    box, true_box = inputs
    return ops.mean(ops.abs(box - true_box), axis=-1)


class LossesAreOutputs(keras.Model):
    """A functional model that minimises the outputs named in `LOSSES`.

    It replaces `model.add_loss(model.get_layer("class_loss").output)`, a NotImplementedError in Keras 3, where
    `add_loss` may be called from within a layer only, not on a finished graph. `compute_loss` is the hook that `fit`
    calls with the model's outputs, the same on every backend, and the training step stays Keras's own. The ground truth
    came in as an input, so there is no `y`, and `compile` needs no `loss=[None, ...]`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_means = [keras.metrics.Mean(name=name) for name in LOSSES]  # for `history`, a column each

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The sum of the losses, each averaged over the batch."""
        for mean in self.loss_means:
            mean.update_state(y_pred[mean.name])
        return sum(ops.mean(y_pred[name]) for name in LOSSES)


def build_model():
    """A small convolutional network with its losses inside."""
    picture = keras.Input((SIDE, SIDE, 1), name="picture")
    true_class = keras.Input((), dtype="int32", name="true_class")
    true_box = keras.Input((4,), name="true_box")
    x = picture
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    logits = layers.Dense(2, name="class_logits")(x)
    box = layers.Dense(4, name="box")(x)
    outputs = {
        "class_logits": logits,
        "class_scores": layers.Softmax(name="class_scores")(logits),
        "box": box,
        # output_shape says that the layer gives one number a picture, which keeps saving and shape checks exact.
        "class_loss": layers.Lambda(class_loss, output_shape=(), name="class_loss")((logits, true_class)),
        "box_loss": layers.Lambda(box_loss, output_shape=(), name="box_loss")((box, true_box)),
    }
    return LossesAreOutputs({"picture": picture, "true_class": true_class, "true_box": true_box}, outputs)


def batches(seed):
    """Yield `(inputs,)` without end: what `fit` takes where there is no `y`."""
    generator = np.random.default_rng(seed)
    while True:
        long, short = generator.integers(14, 22, BATCH), generator.integers(5, 11, BATCH)
        tall = generator.integers(0, 2, BATCH)
        sides = np.where(tall[:, None] == 1, np.stack([short, long], 1), np.stack([long, short], 1))  # width, height
        corners = generator.integers(0, SIDE - sides + 1)
        boxes = np.concatenate([corners, corners + sides], axis=1)  # x1, y1, x2, y2
        pictures = generator.normal(0, 0.3, (BATCH, SIDE, SIDE, 1)).astype(np.float32)
        for image, (x1, y1, x2, y2) in zip(pictures, boxes):
            image[y1:y2, x1:x2] += 1
        truth = {"true_class": tall.astype(np.int32), "true_box": (boxes / SIDE).astype(np.float32)}
        yield ({"picture": pictures, **truth},)


def main(argv=None):
    """Train, print the losses epoch by epoch, look at fresh pictures, draw the graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="example: python %(prog)s --epochs 8")
    parser.add_argument("--epochs", type=int, default=8, help="of 50 steps each (default: 8)")
    parser.add_argument("--graph", default="multi_output.png", help="picture of the model (default: %(default)s)")
    arguments = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    model = build_model()
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    history = model.fit(batches(0), steps_per_epoch=50, epochs=arguments.epochs, shuffle=False, verbose=0).history
    for epoch, values in enumerate(zip(*(history[name] for name in ("loss", *LOSSES))), start=1):
        print(f"epoch {epoch}: loss {values[0]:.3f} = class_loss {values[1]:.3f} + box_loss {values[2]:.3f}")
    fresh = next(batches(1))[0]
    found = model.predict_on_batch(fresh)
    right = np.mean(found["class_scores"].argmax(axis=1) == fresh["true_class"])
    error = SIDE * np.abs(found["box"] - fresh["true_box"]).mean()
    print(f"{BATCH} fresh pictures: {right:.0%} of the classes right, boxes off by {error:.1f} pixels on average")
    try:
        keras.utils.plot_model(model, arguments.graph, show_shapes=True, show_layer_names=True, dpi=80)
        print(f"graph: {arguments.graph}")
    except ImportError:
        print("no picture of the graph: it needs Graphviz and `pip install pydot`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
