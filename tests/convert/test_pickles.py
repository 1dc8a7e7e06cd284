"""Files of torch.save without torch: values, laziness, and that nothing in them runs."""

import collections
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch

from codec_jax.convert import pickles
from codec_jax.errors import UserError


def saved(tmp_path, content, **options):
    path = tmp_path / "file.ckpt"
    torch.save(content, path, **options)
    return path


def test_every_dtype_and_layout(tmp_path):
    tensors = {
        str(dtype): torch.arange(24).reshape(2, 3, 4).to(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16,
                      torch.int8, torch.uint8, torch.bool)
    }  # fmt: skip
    whole = torch.randn(5, 7)
    views = {"t": whole.T, "slice": whole[1:4, 2:5], "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3)}
    module = torch.nn.Linear(3, 2)
    content = {"state_dict": collections.OrderedDict(tensors), **views, "module": module.state_dict(),
               "parameter": module.weight, "score": np.float64(0.5), "count": np.int64(7), "text": "x",
               "list": [1, 2.5, None, True, (3, "y")]}  # fmt: skip
    got = pickles.read(saved(tmp_path, content))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(got["state_dict"][name].astype(np.float64), tensor.to(torch.float64).numpy())
        assert got["state_dict"][name].dtype.name == name.removeprefix("torch.")
    for name, tensor in views.items():
        np.testing.assert_array_equal(got[name], tensor.numpy())
    np.testing.assert_array_equal(got["parameter"], module.weight.detach().numpy())
    np.testing.assert_array_equal(got["module"]["bias"], module.bias.detach().numpy())
    assert (got["score"], got["count"], got["text"], got["list"]) == (0.5, 7, "x", [1, 2.5, None, True, (3, "y")])


def test_tensors_are_mapped_and_read_only(tmp_path):
    got = pickles.read(saved(tmp_path, {"x": torch.ones(1000)}))
    base = got["x"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert not base.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        got["x"][0] = 2


class Evil:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (pathlib.Path.touch, (self.victim,))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_malicious_reduce_is_refused_and_nothing_runs(tmp_path, protocol):
    victim = tmp_path / "victim"
    path = saved(tmp_path, {"more": Evil(victim), "state_dict": {"x": torch.ones(2)}}, pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"asks for .*Nothing of it was run"):
        pickles.read(path)
    assert not victim.exists()
    Evil(victim).__reduce__()[0](victim)
    assert victim.exists()  # the trap itself works


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "builtins.getattr", "codec_jax.cli.main", "torch.load", "numpy.load"]
)
def test_names_are_not_even_imported(tmp_path, name):
    module, _, function = name.rpartition(".")
    path = write_pickle(tmp_path, f"c{module}\n{function}\n(S'true'\ntR.".encode())
    with pytest.raises(UserError, match=name):
        pickles.read(path)


def write_pickle(tmp_path, data, storages=()):
    path = tmp_path / "made.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        for key, content in storages:
            archive.writestr(f"a/data/{key}", content)
    return path


def rebuilt(*arguments):
    """A pickle that calls _rebuild_tensor_v2 on storage "0" of 8 floats with these (offset, size, stride)."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", 8) if obj == "STORAGE" else None

    class Tensor:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, ("STORAGE", *arguments, False, collections.OrderedDict()))

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(Tensor())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [(0, (9,), (1,)), (4, (5,), (1,)), (0, (3,), (4,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,))],
)
def test_tensors_stay_inside_their_storage(tmp_path, arguments):
    path = write_pickle(tmp_path, rebuilt(*arguments), [("0", bytes(32))])
    with pytest.raises(UserError, match=r"impossible shape|beyond its storage"):
        pickles.read(path)


def test_tensors_at_the_edge_are_fine(tmp_path):
    data = np.arange(8, dtype=np.float32).tobytes()
    got = pickles.read(write_pickle(tmp_path, rebuilt(1, (2, 2), (4, 2)), [("0", data)]))
    np.testing.assert_array_equal(got, [[1, 3], [5, 7]])


def test_damage_is_one_sentence(tmp_path):
    path = saved(tmp_path, {"x": torch.ones(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        pickles.read(path)
    with pytest.raises(UserError, match="cut short"):
        pickles.read(write_pickle(tmp_path, rebuilt(0, (8,), (1,)), [("0", bytes(16))]))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "x")
    with pytest.raises(UserError, match=r"not one of torch\.save"):
        pickles.read(path)
    torch.save({"x": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"older than 1\.6"):
        pickles.read(path)


def test_compressed_archives_are_read_too(tmp_path):
    path = write_pickle(tmp_path, rebuilt(0, (8,), (1,)))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", np.arange(8, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(pickles.read(path), np.arange(8))
