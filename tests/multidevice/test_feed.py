"""Which clips a process reads, and where they come to lie."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, Sharding

from codec_jax.train import feed, sharding

CLIPS = 12


class Held(Sharding):
    """A sharding as seen by a process whose devices hold these spans of the batch."""

    def __init__(self, *spans):
        self.spans = spans

    def addressable_devices_indices_map(self, global_shape):
        return {number: (slice(*span),) for number, span in enumerate(self.spans)}


@pytest.mark.parametrize(
    ("spans", "places"),
    [
        ([(None, None)], list(range(CLIPS))),
        ([(0, 3), (6, 9)], [0, 1, 2, 6, 7, 8]),  # a torus cut in two, hosts side by side
        ([(8, 12), (4, 8), (4, 8)], [4, 5, 6, 7, 8, 9, 10, 11]),  # the tensor axis crosses processes
    ],
)
def test_a_process_reads_what_its_devices_hold(spans, places):
    assert feed.local_places(Held(*spans), CLIPS) == places


@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 3, 1), (1, 1, 8)])
def test_clips_come_to_lie_at_their_places(sizes):
    """However the mesh orders the devices."""
    devices = np.array(jax.devices()[: np.prod(sizes)])[::-1].reshape(sizes)
    where = sharding.batch_sharding(Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3))
    places = np.array(feed.local_places(where, CLIPS), np.int32)
    audio = np.random.default_rng(0).standard_normal((CLIPS, 1, 5)).astype(np.float32)
    fed = feed.on_devices({"audio": audio[places], "place": places, "clip": places}, where, CLIPS)
    assert sorted(fed) == ["audio", "place"]
    assert fed["audio"].sharding == where
    np.testing.assert_array_equal(fed["place"], np.arange(CLIPS))
    np.testing.assert_array_equal(fed["audio"], audio)


def test_a_process_that_holds_a_part_places_that_part(monkeypatch):
    """Seen from a process whose devices hold clips 2 and 3, and 8 and 9."""
    shards = []

    def watched(shape, where, shard):
        shards.append((shape, shard))
        return jax.numpy.zeros(shape)

    monkeypatch.setattr(jax, "make_array_from_callback", watched)
    places = np.array([2, 3, 8, 9], np.int32)
    feed.on_devices({"audio": np.float32(10 * places)[:, None], "place": places}, Held(), CLIPS)
    shape, shard = shards[0]
    assert shape == (CLIPS, 1)
    assert shard((slice(8, 10), slice(None))).ravel().tolist() == [80.0, 90.0]
    assert shard((slice(2, 3), slice(None))).ravel().tolist() == [20.0]
