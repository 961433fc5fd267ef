"""Weights that are not what their card says, or no weights at all."""

import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

from inscan.models import weights as module
from inscan.models.weights import SHIPPED, WeightsError, load_weights

NAME = "superres_srcnn_x2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for suffix in ("safetensors", "json"):
        shutil.copy(SHIPPED / f"{NAME}.{suffix}", tmp_path)
    return tmp_path


def with_card(folder: Path, blob: bytes) -> None:
    """Put a file there whose card fits: what somebody can do who may write both."""
    card = json.loads((folder / f"{NAME}.json").read_text())
    (folder / f"{NAME}.safetensors").write_bytes(blob)
    card["sha256"] = hashlib.sha256(blob).hexdigest()
    (folder / f"{NAME}.json").write_text(json.dumps(card))


def test_one_flipped_bit_anywhere_is_refused(folder):
    path = folder / f"{NAME}.safetensors"
    whole = path.read_bytes()
    for at in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(WeightsError, match="its card says"):
            load_weights(NAME, folder)


def test_the_card_of_other_weights_is_refused(folder):
    shutil.copy(SHIPPED / "superres_srcnn_x4.json", folder / f"{NAME}.json")
    with pytest.raises(WeightsError, match="belongs to another card"):
        load_weights(NAME, folder)


def test_pickled_weights_are_not_opened_even_with_a_card_that_fits(folder, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "evil.pt")
    with_card(folder, (tmp_path / "evil.pt").read_bytes())
    with pytest.raises(WeightsError, match="no safetensors file"):
        load_weights(NAME, folder)
    with pytest.raises(FileNotFoundError):
        load_weights("evil.pt", folder)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 50_000_000) + b" " * 100,
        struct.pack("<Q", 66)
        + b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
        struct.pack("<Q", 5000) + b"[" * 5000,
    ],
    ids=["empty", "huge header", "long header", "huge tensor", "deep"],
)
def test_headers_that_claim_more_than_there_is_are_refused(folder, blob):
    with_card(folder, blob)
    with pytest.raises(WeightsError, match="no safetensors file"):
        load_weights(NAME, folder)


@pytest.mark.parametrize("card", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"name": 1}'])
def test_what_is_no_card_is_refused(folder, card):
    (folder / f"{NAME}.json").write_bytes(card)
    with pytest.raises(WeightsError, match="card"):
        load_weights(NAME, folder)


def test_files_larger_than_any_of_ours_are_not_read(folder, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    with pytest.raises(WeightsError, match="larger than any of ours"):
        load_weights(NAME, folder)
