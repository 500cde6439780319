"""The strictest JAX there is: no implicit promotion, warnings are errors, 8 devices."""

import gc
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

# Compilation dominates each example, so no deadline; the same examples every time.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=15
)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory, worker_id):
    """Most of a test is compilation: XLA compiles each program once for all of a run.

    JAX's own cache, whose key is the whole program, so that a changed rule is compiled
    anew. The folder is the run's, shared by its workers. It is not in the environment:
    the processes that a test starts compile as they do for a user.
    """
    run = tmp_path_factory.getbasetemp()
    folder = (run if worker_id == "master" else run.parent) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_finish():
    """What is imported stays: looking through it for garbage takes a tenth of all."""
    gc.freeze()


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """Rules do as on one device, which most users have, where no test is of several."""
    if "several_devices" not in request.keywords:
        monkeypatch.setattr("handgrad.sharding.may_be_split", lambda: False)


@pytest.fixture
def forgetful():
    """`rewrite` remembers nothing from before, nor afterwards."""
    from handgrad._rewrite import jaxprs, replacements

    def forget():
        replacements._jitted.cache_clear()
        jaxprs._done.clear()

    forget()
    yield
    forget()
