"""Which formula computes which direction when the caller names none.

Where the platform is not a CPU, its library's convolution is the right engine: `rot180`
in all directions. On a CPU the table below holds, from the kernel [K, L, C/G, O] to the
three formulas. The comments tell how many times faster than autodiff each line was
measured (jax 0.10.1, 2 cores, float32); what has no line was not faster otherwise.
"""

from handgrad.convolution import taps
from handgrad.convolution.spec import ConvFormulas, ConvSpec

ANYWHERE = ConvFormulas("rot180", "rot180", "rot180")


def on_cpu(kernel_shape: tuple[int, ...], spec: ConvSpec) -> ConvFormulas:
    """Returns the three formulas for a kernel [K, L, C/G, O] of this geometry."""
    groups, (inputs, outputs) = spec.feature_group_count, kernel_shape[-2:]
    few_places = taps.unsuitable(spec) is None
    forward, input_gradient, kernel_gradient = "rot180", "rot180", "rot180"
    if groups > 1:
        if few_places and inputs == 1 and outputs == groups:
            # Depthwise 3×3, 5×5, 7×7: forward 8 to 25, dx 4 to 200, dkernel 3 to 27.
            return ConvFormulas("taps", "taps", "taps")
        if groups > 32:
            # A convolution a group (280 at G = 32) would be compiled as often; one
            # product over all groups is not.
            kernel_gradient = "gemm"
    elif few_places:
        if inputs == 1 and outputs <= 16:
            # 5×5 on 1 channel to 6: forward 7, dx 4.
            forward = input_gradient = "taps"
        elif inputs == 1:
            # 3×3 and 5×5 on 1 channel to 32: 1.9 and 2.6.
            input_gradient = "gemm"
        elif inputs <= 8 and spec.windows and max(w.size for w in spec.windows) > 1:
            # 7×7/2 and 3×3 on 3 channels: 1.2 to 1.5; 5×5 on 6: 2.
            input_gradient = "taps"
        elif all(w.size == 1 for w in spec.windows):
            # 1×1, stride 1 and 2: 2 to 3, one matrix product in place of a convolution.
            kernel_gradient = "taps"
    return ConvFormulas(forward, input_gradient, kernel_gradient)
