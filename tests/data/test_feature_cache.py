"""The feature cache: what is written is what is read, and everything else is refused."""

import numpy as np
import pytest
import torch

from vwlmm.data.feature_cache import CacheKey, FeatureCache, make_cache

KEY = CacheKey("tower", None, "weights", "layer -1", "pixels", "float32", "pairs")


def rows():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 3, generator=generator) for length in (2, 0, 4)]


def make(folder, key=KEY):
    make_cache(folder, key, np.array([2, 0, 4]), 3, iter(rows()))
    return FeatureCache(folder, key)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_features_come_back_as_they_were_written(tmp_path, dtype):
    key = CacheKey(**{**KEY.__dict__, "dtype": dtype})
    cache = make(tmp_path / "cache", key)
    assert len(cache) == 3
    for index, row in enumerate(rows()):
        assert torch.equal(cache[index], row.to(getattr(torch, dtype)))


def test_a_read_feature_can_be_changed_without_changing_the_cache(tmp_path):
    cache = make(tmp_path / "cache")
    cache[0].zero_()
    assert torch.equal(cache[0], rows()[0])


@pytest.mark.parametrize("field", list(KEY.__dict__))
def test_a_cache_of_something_else_is_refused_by_the_field_that_differs(tmp_path, field):
    make(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"is of another .*there, 'other' here"):
        FeatureCache(tmp_path / "cache", CacheKey(**{**KEY.__dict__, field: "other"}))


def test_the_size_is_said_before_anything_is_written(tmp_path, caplog):
    def never():
        raise RuntimeError("the tower broke")
        yield

    with pytest.raises(RuntimeError, match="broke"):
        make_cache(tmp_path / "cache", KEY, np.array([2000, 1000]), 1000, never())
    assert "2 rows, 3,000 tokens of 1000 × float32: 12.0 MB" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_cache_too_large_for_the_disk_is_not_begun(tmp_path):
    with pytest.raises(OSError, match=r"would take .* give data\.cache a folder elsewhere"):
        make_cache(tmp_path / "cache", KEY, np.array([10**12]), 1000, iter(()))


def test_fewer_rows_than_announced_leave_no_cache(tmp_path):
    with pytest.raises(ValueError, match="was to have 4 rows, got 3"):
        make_cache(tmp_path / "cache", KEY, np.array([2, 0, 4, 1]), 3, iter(rows()))
    assert not (tmp_path / "cache").exists()


def test_no_cache_is_said_plainly(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are none"):
        FeatureCache(tmp_path, KEY)
