"""One training run with scVAEIT; started by vaeit_vs_scvaeit.py with the interpreter that has it.

    python scvaeit_job.py JOB.json        reads the job, writes clocks to job["result"] and the denoised values to job["values"]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np
import scVAEIT
import tensorflow as tf
from scVAEIT.VAEIT import VAEIT

WARM_EPOCHS = 2


def model_of(job: dict, arrays: dict) -> VAEIT:
    """Return a new model on the arrays."""
    names, sizes = arrays["names"], arrays["sizes"]
    units, mask_units = (dict(zip(job["names"], job[key], strict=True)) for key in ("units", "mask_units"))
    of_block = [str(name) for name in arrays["block_names"]]
    widths = np.array([units[name] for name in of_block])
    settings = {
        "dim_input_arr": sizes, "dim_block": arrays["blocks"], "dist_block": ["Bernoulli" if name == "atac" else "NB" for name in of_block],
        "uni_block_names": names, "block_names": arrays["block_names"], "dim_block_enc": widths, "dim_block_dec": widths,
        "dim_block_embed": np.array([mask_units[name] for name in of_block]), "dimensions": job["hidden"], "dim_latent": job["latent"],
        "beta_unobs": job["beta_unobs"], "beta_kl": job["beta_kl"], "beta_modal": np.array(job["beta_modal"], dtype=np.float32),
        "p_modal": np.ones(len(sizes)) / len(sizes), "p_feat": job["p_feat"],
    }  # fmt: skip
    tf.keras.utils.set_random_seed(job["seed"])
    return VAEIT(settings, arrays["Y"], arrays["masks"].astype(np.float32), None, arrays["batch"][:, None])


def timed(model: VAEIT, epochs: int, batch_size: int) -> tuple[float, float]:
    """Train; return seconds on the wall and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    model.train(num_epoch=epochs, batch_size=batch_size, verbose=False)
    return time.perf_counter() - wall, time.process_time() - cpu


def main(job: dict) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(job["threads"])
    arrays = dict(np.load(job["arrays"]))
    steps = len(arrays["Y"]) // job["batch_size"]
    # The first calls of a train() trace and compile, which is taken off where the clocks are wanted.
    warm = timed(model_of(job, arrays), WARM_EPOCHS, job["batch_size"]) if job["timed"] else (0.0, 0.0)
    model = model_of(job, arrays)
    whole = timed(model, job["epochs"], job["batch_size"])
    done = (job["epochs"] - WARM_EPOCHS) * steps
    started = time.perf_counter()
    values = model.get_denoised_data(L=job["draws"], num_repeat=1)
    result = {
        "wall per step": (whole[0] - warm[0]) / done, "cpu per step": (whole[1] - warm[1]) / done, "wall": whole[0], "cpu": whole[1],
        "steps": steps * job["epochs"],
        "denoise": time.perf_counter() - started, "versions": {"scVAEIT": getattr(scVAEIT, "__version__", "1.1.1"), "tensorflow": tf.__version__},
    }  # fmt: skip
    np.save(job["values"], np.asarray(values, dtype=np.float32))
    Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
