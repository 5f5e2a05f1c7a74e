"""The compiled passes through MIDAS' discriminators with products in bf16, or in float32 where there are no loops for bf16."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np

from cellweave.core.nn.discriminator_kernels import compiled_for
from cellweave.core.nn.narrow_products import loops

#: What products are made of; bf16 is kept as uint16.
KIND = np.float32 if loops() is None else np.uint16
passes = compiled_for(KIND)
