"""The readers of files of detectors, archives and results, for the fuzzer."""

import io
import warnings
from pathlib import Path

import h5py
import numpy as np
import tifffile
from decoder import Decoder, in_file

from inscan.callbacks.external import DetectorFiles
from inscan.callbacks.file_access import FileRefused, NotReadable
from inscan.callbacks.file_sequences import pages, read_array, rows_of_npy
from inscan.service.archive_files import open_archive
from inscan.service.archive_process import prepare
from inscan.service.archive_request import Asked
from inscan.service.archive_types import ArchiveError
from inscan.service.processed import BornWeights, Processed, ResultArray
from inscan.service.result_file import ResultFileError, read_result, read_weights, write_result
from inscan.service.result_view import describe, digest_of


def files(folder: Path) -> list[Decoder]:
    """Readers of files; each has a file of its own in `folder`."""
    maps = np.random.default_rng(1).poisson(9, (2, 6, 7)).astype("<f4")
    result = folder / "result.h5"
    arrays = [ResultArray("values", ("element", "row", "col"), "counts", maps, ["Fe_K", "Ni_K"])]
    write_result(
        result, Processed(arrays, {"verdict": "pass"}, weights=_weights()), {"profile": "x"}
    )
    detector = io.BytesIO()
    with h5py.File(detector, "w") as file:
        file["entry/data"] = np.arange(60, dtype="<u2").reshape(10, 2, 3)
        file["entry/grown"] = file.create_dataset(
            "g", (4, 2, 3), "<f8", maxshape=(None, 2, 3), compression="gzip", fill_time="never"
        )
        file["entry/link"] = h5py.SoftLink("/entry/data")
    npy, npz, tiff, big = (io.BytesIO() for _ in range(4))
    np.save(npy, maps)
    np.savez_compressed(npz, Fe_K=maps[0], Ni_K=maps[1])
    tifffile.imwrite(tiff, maps)
    tifffile.imwrite(big, maps.astype("<u2"), bigtiff=True)
    table = b"x,y,Fe_K,Ni_K\n" + b"".join(f"{k % 3},{k // 3},{k},2.5\n".encode() for k in range(9))

    def rows(path: Path) -> None:
        for dataset in ("entry/data", "entry/grown", "entry/link"):
            files = DetectorFiles([folder.resolve()])
            resource = {
                "uid": "r",
                "data_key": "k",
                "mimetype": "application/x-hdf5",
                "uri": f"file://localhost{path}",
                "parameters": {"dataset": dataset, "chunk_shape": [1]},
            }
            files.add(resource)
            datum = {"stream_resource": "r", "descriptor": "d", "indices": {"start": 0, "stop": 4}}
            try:
                for _ in files.read(files.rows(datum), (2, 3)):
                    pass
                files.grown_length("r", (2, 3))
            finally:
                files.close()

    def see(path: Path) -> None:
        for read in (read_result, describe, digest_of, read_weights):
            try:
                read(path)
            except ResultFileError:
                pass

    def archive(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_archive(path) as found:
                for dataset in (
                    found.datasets.values() if isinstance(found.datasets, dict) else found.datasets
                ):
                    if dataset.size < 1 << 20:
                        dataset.read(())
            prepare(path, Asked())

    refused = (FileRefused, NotReadable)
    return [
        Decoder("result file", [result.read_bytes()], in_file(folder / "r.h5", see), (OSError,)),
        Decoder(
            "detector file, HDF5",
            [detector.getvalue()],
            in_file(folder / "d.h5", rows),
            (*refused, ValueError),
        ),
        Decoder(
            "detector file, npy",
            [npy.getvalue()],
            in_file(folder / "d.npy", _rows_of_npy),
            refused,
        ),
        Decoder(
            "detector file, TIFF",
            [tiff.getvalue(), big.getvalue()],
            in_file(folder / "d.tif", _pages),
            refused,
        ),
        *(
            Decoder(
                f"archive .{kind}", [seed], in_file(folder / f"a.{kind}", archive), (ArchiveError,)
            )
            for kind, seed in (
                ("npy", npy.getvalue()),
                ("npz", npz.getvalue()),
                ("tif", tiff.getvalue()),
                ("csv", table),
                ("h5", detector.getvalue()),
            )
        ),
    ]


def _rows_of_npy(path: Path) -> None:
    rows_of_npy(path, (6, 7), 0, 2)
    read_array(path, "application/x-npy", (2, 6, 7))


def _pages(path: Path) -> None:
    pages(path, (6, 7), 0, 2)
    read_array(path, "image/tiff", (2, 6, 7))


def _weights() -> BornWeights:
    return BornWeights(b"weights" * 20, {"sha256": "0"})
