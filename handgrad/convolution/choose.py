"""Which formula computes which direction when the caller names none.

Where the platform is not a CPU, its library's convolution is the right engine: `rot180`
in all directions. On a CPU the table below holds. Behind each line stands what was
measured against XLA's own convolution (jax 0.10.1, 2 cores, float32).
"""

from handgrad.convolution import taps
from handgrad.convolution.spec import ConvFormulas, ConvSpec

ANYWHERE = ConvFormulas("rot180", "rot180", "rot180")


def on_cpu(kernel_shape: tuple[int, ...], spec: ConvSpec) -> ConvFormulas:
    """Returns the three formulas for a kernel [K, L, C/G, O] of this geometry."""
    groups, (inputs, outputs) = spec.feature_group_count, kernel_shape[-2:]
    small = taps.unsuitable(spec) is None
    if small and groups > 1 and inputs == 1 and outputs == groups:
        # Depthwise: a few multiplications a pixel, no matrix product to be had.
        # DEPTHWISE
        return ConvFormulas("taps", "taps", "taps")
    if groups > 32:
        # One convolution a group would compile for minutes; one product over all
        # groups is batched.
        return ConvFormulas("rot180", "rot180", "gemm")
    return ANYWHERE
