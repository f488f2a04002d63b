import hashlib

import pytest

from tfx import digests


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 21, 22])
def test_a_file_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr(digests, "PIECE_BYTES", 7)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(size)))
    assert digests.sha256_of(path) == hashlib.sha256(bytes(range(size))).hexdigest()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        digests.sha256_of(tmp_path / "none")
