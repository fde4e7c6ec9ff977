"""Nothing is read that nobody wrote: a training step and a detection where all new memory is filled with NaN."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

TESTS = Path(__file__).parents[1]
# Maps of 153 cells and, behind the stem, of 306: among the widths at which oneDNN reads such memory.
SCRIPT = """
import sys
import keras
import numpy as np
from frcnn import backend
from frcnn.models.detector import build_detector, detection_model
from frcnn.optimizer import build_optimizer
from tests.oracles.tiny import CLASS_NAMES, tiny_batch, tiny_config

output, networks = sys.argv[1], sys.argv[2:]
backend.make_deterministic(0)
noise = np.random.default_rng(0).integers(0, 256, (2, 104, 612, 3), dtype=np.uint8)
batch = tiny_batch() | {"images": noise, "image_sizes": np.array([[104, 612], [97, 601]], np.int32)}
pyramid = ["model.anchor_sizes=[8,16,32,64,128]"]
numbers = {}
for network in networks:
    architecture, norm, precision = network.split("/")
    settings = [f"model.architecture={architecture}", f"model.norm={norm}", f"train.precision={precision}"]
    model = build_detector(tiny_config(*settings, *pyramid * (architecture != "c4")), CLASS_NAMES)
    model.compile(optimizer=build_optimizer(model.config.train, 4))
    model.optimizer.build(model.trainable_variables)
    data = backend.training_data(lambda: iter([(batch,)]), (batch,))
    found = dict(model.fit(data, steps_per_epoch=1, verbose=0).history)
    found |= {f"weight {index}": values for index, values in enumerate(model.get_weights())}
    found |= detection_model(model).predict_on_batch({name: batch[name] for name in ("images", "image_sizes")})
    numbers |= {f"{network} {name}": np.asarray(values, np.float32) for name, values in found.items()}
np.savez(output, **numbers)
"""


@pytest.fixture(scope="module")
def poison(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or not compiler:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("poison") / "poison.so"
    done = subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, TESTS / "poison.c"], check=False)
    if done.returncode:
        pytest.skip("the C compiler cannot make a library for glibc")
    return library


def run(folder, networks, **environment):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1", **environment}
    arguments = [sys.executable, "-c", SCRIPT, folder / "numbers.npz", *networks]
    result = subprocess.run(arguments, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    with np.load(folder / "numbers.npz") as file:
        return dict(file)


def test_a_training_step_and_a_detection_read_no_unwritten_memory(tmp_path, poison):
    """In both precisions, finite and the same bits as without; with oneDNN, which other processors turn on."""
    kinds = ["c4/frozen", "fpn/batch", "fpn_v2/frozen"]
    kinds = kinds if keras.backend.backend() == "tensorflow" else kinds[1:2]
    networks = [f"{kind}/{precision}" for precision in ("float32", "bfloat16") for kind in kinds]
    found = run(tmp_path, networks, LD_PRELOAD=str(poison))
    assert len({name.split()[0] for name in found}) == len(networks)
    broken = [name for name, values in found.items() if not np.isfinite(values).all()]
    assert not broken, broken
    assert not any(values.any() for name, values in found.items() if name.endswith("skipped_steps"))
    for name, values in run(tmp_path, networks).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.tensorflow
def test_the_poison_shows_unwritten_memory(poison):
    code = "import numpy as np; print(np.isnan(np.empty(100_000, np.float32)).all())"
    environment = {**os.environ, "LD_PRELOAD": str(poison)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"
