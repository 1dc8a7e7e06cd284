"""Eight simulated CPU devices, a compilation cache and runtime shape checks, all set before JAX starts."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # here and in what tests start: with libtpu, JAX looks for TPUs
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("CODEC_JAX_TEST_CACHE") or str(
    pathlib.Path(tempfile.gettempdir()) / "codec_jax_test_cache"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import jaxlib

if jaxlib.__version__.startswith("0.10."):  # others may not know the flag, and stop at what they do not know
    # XLA's older code for fusions: without LLVM's optimisations, as below, a third less to compile; with them, half more.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

jax.config.update("jax_num_cpu_devices", 8)

import json  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
GOLDEN = pathlib.Path(os.environ.get("CODEC_JAX_GOLDEN", SHARED / "golden"))
SPEECH = pathlib.Path(os.environ.get("CODEC_JAX_SPEECH", SHARED / "speech"))
OPTIMISED = {"parity", "pytorch", "test_convert_full.py", "test_long_audio.py", "test_nano.py", "test_plan.py"}
LONGEST = {"multidevice", "parity", "train", "test_long_audio.py", "test_runner.py", "test_intervals.py"}


def pytest_configure(config):
    """Shapes and types are checked at every call, but not among slow tests: it makes tracing half as long again."""
    if config.option.markexpr != "slow":
        install_import_hook("codec_jax", "beartype.beartype").__enter__()


def _is_in(names, item):
    return not names.isdisjoint((item.path.parent.name, item.path.name))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compilation is most of a test, and LLVM's optimisations half of that: what is compared with others' programs, plans,
    and long computations have them, and nothing else.
    """
    jax.config.update("jax_disable_most_optimizations", not _is_in(OPTIMISED, item))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest files first: whichever comes last keeps one core waiting."""
    items.sort(key=lambda item: not _is_in(LONGEST, item))


@pytest.fixture(autouse=True, scope="module")
def _few_executables():
    """A process may map 65,530 pieces of memory, and every executable of JAX takes some: past that it crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.is_file() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def golden():
    """golden("taae/A/tensors.safetensors") -> dict of arrays; golden.path("taae/A") -> its directory."""

    def load(name: str) -> dict[str, np.ndarray]:
        return load_file(path(name))

    def path(name: str) -> pathlib.Path:
        if not GOLDEN.is_dir():
            pytest.skip(f"no golden vectors at {GOLDEN} (set CODEC_JAX_GOLDEN)")
        return GOLDEN / name

    load.path = path
    return load


@pytest.fixture(scope="session")
def speech():
    """Paths of recorded voices, 16 kHz mono FLAC."""
    if not SPEECH.is_dir():
        pytest.skip(f"no recorded speech at {SPEECH} (set CODEC_JAX_SPEECH)")
    return sorted(SPEECH.glob("*.flac"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def recipe():
    """Upstream's config and state_dict of a small model, from a recipe, so that a plain clone has one."""
    from tests.parity.recipe import RecipeTensors  # it imports codec_jax, which the hook above must come before

    expected = json.loads((pathlib.Path(__file__).parent / "parity" / "taae_recipe.json").read_text())
    tensors = RecipeTensors({name: tuple(shape) for name, shape in expected["shapes"].items()}, expected["salt"])
    return expected["config"], {name: np.asarray(tensors[name]) for name in tensors}


@pytest.fixture
def upstream_directory(recipe, tmp_path):
    """A directory as upstream publishes one."""
    config, tensors = recipe
    directory = tmp_path / "upstream"
    directory.mkdir()
    (directory / "model_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Eight seconds of noisy tones: train/ and valid/."""
    import soundfile

    directory = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("valid", 2)):
        (directory / part).mkdir()
        for i in range(count):
            tone = np.sin(2 * np.pi * (200 + 50 * i) * np.arange(16_000) / 16_000)
            soundfile.write(directory / part / f"{i}.wav", 0.1 * tone + 0.02 * rng.standard_normal(16_000), 16_000)
    return directory


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory):
    """A run of a few steps whose model upstream could express."""
    from codec_jax.train import loop
    from tests import tiny

    config = tiny.experiment(steps=4, eval_every=4, checkpoint_every=2)
    model = tiny.changed(config.model, head_dim=128)
    data = tiny.changed(config.data, train=str(corpus / "train"), valid=str(corpus / "valid"))
    workdir = tmp_path_factory.mktemp("run") / "run"
    loop.run(tiny.changed(config, model=model, data=data), workdir)
    return workdir
