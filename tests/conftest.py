"""The strictest JAX there is: no implicit promotion, warnings are errors, 8 devices."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis

# Compilation dominates each example, so no deadline; the same examples every time.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=15
)
hypothesis.settings.load_profile("default")
