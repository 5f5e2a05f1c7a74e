"""The compiled passes through MIDAS' discriminators with products in float32."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np

from cellweave.core.nn.discriminator_kernels import compiled_for

#: What products are made of.
KIND = np.float32
passes = compiled_for(KIND)
