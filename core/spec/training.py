"""The training part of the spec."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from cellweave.core.spec import words
from cellweave.core.spec.fields import Frozen, option
from cellweave.core.spec.optimisers import OptimiserName, optimiser_name

LENGTH, OPTIMISER, STOPPING, MACHINE, RECORD = "Length", "Optimiser", "Validation and stopping", "Machine", "Record"


class TrainingSpec(Frozen):
    """How the model is fitted."""

    max_epochs: int | None = option(
        None, "Epochs", "Passes over the training cells. Where none are named: scVI's are 400 up to 20,000 cells and fewer beyond.",
        unit="epochs", group=LENGTH, ge=1, auto="by model and number of cells",
    )
    batch_size: int = option(
        128, "Minibatch", "Cells per step. Larger minibatches are faster; raise the learning rate with them.",
        unit="cells", group=OPTIMISER, ge=2, log=True,
    )
    learning_rate: float = option(
        1e-3, "Learning rate", "Step size of the optimiser. The defaults are for Adam and its kin; adadelta and adagrad want larger ones.",
        unit="per step", group=OPTIMISER, gt=0, le=1, log=True,
    )
    optimizer: OptimiserName = option(
        "adam", "Optimiser", "Any of torch's that needs the gradient only. Adam adds the weight decay to the gradient, AdamW shrinks the weights; "
        "these two have a compiled step for models of many parts.",
        group=OPTIMISER, advanced=True, words=words.OPTIMISER_WORDS,
    )  # fmt: skip
    adam_eps: float = option(
        0.01, "Epsilon", "Added to the root of the squared gradients that a step is divided by. asgd, sgd, rprop and adafactor have none.",
        group=OPTIMISER, gt=0, advanced=True, log=True,
    )
    weight_decay: float = option(
        1e-6, "Weight decay", "Pull of the weights towards zero; rprop has none.", unit="× weights", group=OPTIMISER, ge=0, advanced=True, log=True
    )
    momentum: float = option(
        0.0, "Momentum", "Share of the last step that goes on in the next one; of sgd and rmsprop only.", group=OPTIMISER, ge=0, lt=1, advanced=True
    )
    gradient_clip: float = option(
        0.0, "Clip gradients at", "Largest norm of the gradient; 0 leaves it as it is.", group=OPTIMISER, ge=0, advanced=True
    )
    lr_warmup_steps: int = option(
        0, "Learning-rate warm-up", "Steps over which the learning rate rises from zero.", unit="steps", group=OPTIMISER, ge=0, advanced=True
    )
    lr_plateau: bool = option(
        False, "Lower the rate on a plateau", "Multiply the learning rate where the validation ELBO no longer improves.",
        group=OPTIMISER, advanced=True,
    )
    lr_factor: float = option(0.6, "Plateau factor", "Factor at a plateau.", group=OPTIMISER, gt=0, lt=1, advanced=True)
    lr_patience: int = option(
        30, "Plateau patience", "Epochs without improvement before the rate is lowered.", unit="epochs",
        group=OPTIMISER, ge=1, advanced=True,
    )
    lr_min: float = option(0.0, "Smallest rate", "The learning rate is not lowered below this.", unit="per step", group=OPTIMISER, ge=0, advanced=True)

    kl_warmup_epochs: int | None = option(
        None, "KL warm-up", "Epochs over which the weight of the annealed terms rises to its full value. Where none are named: scVI's are 400, or all "
        "epochs where there are fewer.", unit="epochs", group=LENGTH, ge=0, auto="by model",
    )
    kl_warmup_steps: int | None = option(
        None, "KL warm-up in steps", "Used where the warm-up in epochs is 0.", unit="steps", group=LENGTH, ge=1, auto="off", advanced=True
    )
    kl_start: float = option(0.0, "KL weight at the start", "Factor of the annealed terms in the first epoch.", group=LENGTH, ge=0, le=1, advanced=True)

    validation_share: float = option(0.1, "Validation share", "Share of the cells held out to watch over-fitting.", group=STOPPING, ge=0, le=0.9)
    validate_every: int = option(1, "Validate every", "Epochs between two looks at the held-out cells.", unit="epochs", group=STOPPING, ge=1)
    early_stopping: bool = option(True, "Stop early", "Stop when the validation ELBO no longer improves, and go back to the best weights.", group=STOPPING)
    patience: int = option(45, "Patience", "Epochs without improvement before training stops.", unit="epochs", group=STOPPING, ge=1)
    min_delta: float = option(
        0.0, "Smallest improvement", "An improvement below this does not count.", unit="nats per cell",
        group=STOPPING, ge=0, advanced=True,
    )
    min_delta_per_feature: float = option(
        0.0, "Smallest improvement per feature", "As above, times the number of features of all modalities; the larger of the two "
        "counts.", unit="nats per cell",
        group=STOPPING, ge=0, advanced=True,
    )
    min_epochs: int = option(0, "Not before", "Epochs that are trained in any case.", unit="epochs", group=STOPPING, ge=0, advanced=True)

    seed: int = option(0, "Seed", "Fixes the split, the order of the cells, the initial weights and every draw.", group=RECORD, ge=0, le=2**31 - 1)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Device", "Where the network is computed.", group=MACHINE, words=words.DEVICES)
    precision: Literal["auto", "32", "bf16"] = option(
        "32",
        "Precision",
        "bf16 computes the matrix products in half the bits; losses stay in 32. Auto, which MIDAS begins with, is bf16 on processors that multiply it "
        "themselves (AVX-512 BF16, AMX), and else 32. On real mosaics its embeddings were as good, seed by seed.",
        group=MACHINE, words=words.PRECISIONS,
    )
    threads: int | None = option(None, "Threads", "CPU threads of the network.", group=MACHINE, ge=1, auto="found by a short probe", advanced=True)
    source: Literal["auto", "memory", "device", "disk"] = option(
        "auto", "Minibatches from", "Main memory, the device's memory, or a memory-mapped cache on disk for data larger than memory.",
        group=MACHINE, advanced=True, words=words.SOURCES,
    )
    checkpoint_every: int = option(10, "Checkpoint every", "Epochs between two checkpoints one can resume from.", unit="epochs", group=RECORD, ge=1)
    preview_every: int = option(5, "Refresh the embedding every", "Epochs between two live embeddings; 0 switches them off.", unit="epochs", group=RECORD, ge=0)
    preview_cells: int = option(
        10_000, "Cells in the live embedding", "A fixed sample, stratified by batch.", unit="cells",
        group=RECORD, ge=100, advanced=True,
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _as_torch_spells_it(cls, value: object) -> object:
        """Take ``AdamW`` for ``adamw``; say what is wrong with a name that is none."""
        return optimiser_name(value)

    @field_validator("precision", mode="before")
    @classmethod
    def _number_is_a_word(cls, value: object) -> object:
        """Take ``precision = 32`` for ``"32"``."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
