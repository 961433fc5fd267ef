"""Every decoder that reads what others wrote: valid input to begin with, how it is called, and what it may raise."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from decoder import Decoder, in_file
from decoder_files import files
from document_runs import energy_stack, step_map
from pydantic import BaseModel, ValidationError

from inscan.callbacks.geometry import GeometryError, ScanGeometry
from inscan.callbacks.geometry_start import read_start
from inscan.callbacks.link import SERVICE_FILE, locate
from inscan.callbacks.log_file import LogFile
from inscan.callbacks.pass_file import Pass, PassError, read_pass
from inscan.callbacks.profile import ProfileError, load_profile, shipped_profiles
from inscan.callbacks.sources.bluesky_0mq import ZMQSource, serialize
from inscan.callbacks.sources.decode import DecodeError, decode_document, decode_json, decode_pair
from inscan.callbacks.sources.files import stored_runs, write_documents
from inscan.callbacks.sources.interface import SourceError
from inscan.callbacks.sources.kafka import KafkaSource, read_config
from inscan.callbacks.txm_plan import StackPlan
from inscan.callbacks.updates import NotUnderstood
from inscan.callbacks.wire import (
    WireError,
    decode_message,
    encode_message,
    pack,
    pack_parts,
    unpack,
)
from inscan.service import messages
from inscan.service.settings import SettingsError, load_settings


def decoders(folder: Path) -> list[Decoder]:
    """All of them; files are written to `folder`, one name each."""
    folder.mkdir(parents=True, exist_ok=True)
    return [*_codecs(folder), *_documents(folder), *_texts(folder), *files(folder)]


def _codecs(folder: Path) -> list[Decoder]:
    document = {
        "uid": "u",
        "a": np.arange(6.0).reshape(2, 3),
        "t": np.array(["ab"]),
        "n": [1, 2.5, None, True, 1 + 2j],
    }
    wide = {"x" * 40: {str(k): [k, -k, 2.0**k] for k in range(40)}, "b": b"bytes" * 9}

    def message(data: bytes) -> object:
        # The checksum is right: what it guards against is not what is looked for here.
        kind, _, rest = data.partition(b"\n")
        header, _, chunk = rest.partition(b"\0\0CHUNK\0\0")
        crc = zlib.crc32(chunk, zlib.crc32(header, zlib.crc32(kind)))
        return decode_message([b"XI", bytes((2, 0)), kind, header, struct.pack("<I", crc), chunk])

    def log(path: Path) -> None:
        found = LogFile.adopt(path)
        if found is None:
            return
        try:
            offset: int | None = 0
            while offset is not None:
                try:
                    record = found.read(offset)
                    offset = None if record is None else record.next
                except OSError:
                    offset = found.skip(offset)
        finally:
            found.close()

    written = folder / "made"
    written.mkdir(exist_ok=True)
    for left in written.glob("*.log"):
        left.unlink()
    made = LogFile.create(written, "run")
    for one in (["start", {"uid": "run"}], ["event", document], ["stop", {"run_start": "run"}]):
        made.append(pack_parts(one))
    made.close()
    frames = [
        b"".join((f[2], b"\n", f[3], b"\0\0CHUNK\0\0", *f[5:]))
        for f in (
            [
                bytes(part)
                for part in encode_message(
                    "DOC", {"run": "u", "offset": 0, "next": 9}, pack(document)
                )
            ],
            [
                bytes(part)
                for part in encode_message("HELLO", {"client": "c", "host_id": "h", "pid": 4})
            ],
        )
    ]
    return [
        Decoder("wire.unpack", [pack(document), pack(wide), pack([])], unpack, (WireError,)),
        Decoder("wire.decode_message", frames, message, (WireError,)),
        Decoder("log_file", [made.path.read_bytes()], in_file(folder / "x.log", log), (OSError,)),
    ]


def _documents(folder: Path) -> list[Decoder]:
    run, stack = step_map(), energy_stack()
    plain = [("start", run[0][1]), ("descriptor", run[1][1]), run[2], run[-1]]
    lines = b"\n".join(json.dumps([name, doc]).encode() for name, doc in plain)
    packed = [msgpack.packb(list(one)) for one in plain]
    nd = {b"nd": True, b"type": "<f8", b"kind": b"", b"shape": [2], b"data": bytes(16)}
    numpy = msgpack.packb(
        ["event", {"descriptor": "d", "data": {"a": nd, "c": {b"complex": True, b"data": "1j"}}}]
    )
    pairs = [json.dumps(plain[2]).encode(), packed[1], pack(plain[3]), numpy, pack(stack[2])]
    single = [json.dumps(plain[0][1]).encode(), msgpack.packb(plain[0][1]), pack(stack[2][1])]
    zero = ZMQSource("tcp://localhost:5578")
    kafka = KafkaSource("localhost:9092", ["documents"])

    def stored(path: Path) -> None:
        for one in stored_runs(path):
            for _ in one.documents():
                pass

    for name in ("whole.jsonl", "whole.msgpack"):
        write_documents(folder / name, run)
    kinds = {
        "jsonl": [
            (folder / "whole.jsonl").read_bytes(),
            lines,
            b"\x1e" + lines.replace(b"\n", b"\n\x1e"),
        ],
        "msgpack": [
            (folder / "whole.msgpack").read_bytes(),
            b"".join(bytes(one or b"") for one in packed),
        ],
        "json": [
            json.dumps(plain).encode(),
            json.dumps({"u": plain}).encode(),
            json.dumps(json.dumps(plain)).encode(),
        ],
        "jsonl.gz": [gzip.compress(lines), gzip.compress(lines) + gzip.compress(lines)],
        "docs.log": [(folder / "made").joinpath("run.log").read_bytes()],
    }
    return [
        Decoder("decode_document", single, decode_document, (DecodeError,)),
        Decoder("decode_pair", pairs, decode_pair, (DecodeError,)),
        Decoder("decode_json", [json.dumps(plain).encode()], decode_json, (DecodeError,)),
        Decoder(
            "0MQ message",
            [b" " + name.encode() + b" " + serialize(doc) for name, doc in plain],
            lambda data: zero._message(data, _forget),
            (),
        ),
        Decoder("Kafka message", pairs, lambda data: kafka._message(data, _forget), ()),
        *(
            Decoder(
                f"file of documents .{kind}",
                seeds,
                in_file(folder / f"x.{kind}", stored),
                (SourceError,),
            )
            for kind, seeds in kinds.items()
        ),
    ]


def _forget(name: str, doc: Any) -> None:
    del name, doc


def _texts(folder: Path) -> list[Decoder]:
    starts = [step_map()[0][1], energy_stack()[0][1]]
    starts.append(
        {
            **starts[0],
            "scan_input": [0, 1, 5, 0, 2, 0.5],
            "plan_pattern": "outer_list_product",
            "plan_pattern_args": {"args": ["m", [1, 2, 4], "n", "[1, 2.5]"]},
        }
    )
    starts.append(
        {
            "uid": "u",
            "motors": ["y", "x"],
            "plan_pattern": "spiral",
            "num_points": 9,
            "plan_pattern_args": {"dr": 1, "nth": 5},
            "hints": {"dimensions": [[["x"], "p"]]},
        }
    )
    texts = [json.dumps(start).encode() for start in starts]
    xrf, txm = load_profile("srx").geometry, load_profile("sim_txm").txm
    assert txm is not None

    def geometry(data: bytes) -> None:
        start = decode_json(data)
        if isinstance(start, dict):
            for keys in (None, xrf):
                try:
                    raster = ScanGeometry.from_start(start, keys)
                except GeometryError:
                    read_start(start, keys)
                    continue
                raster.position_of(0, 0)
                raster.pixel_at(*raster.position_of(raster.shape[0] - 1, 0))
                raster.ranges((0, 1, 0, 1))

    def energies(data: bytes) -> None:
        start = decode_json(data)
        if isinstance(start, dict):
            plan = StackPlan.from_start({"uid": "u", **start}, txm)
            plan.image(plan.n_images)

    server, secret = zmq.curve_keypair()
    owner = Pass("c", "client", server.decode(), secret.decode(), server.decode())
    approver = Pass("a", "approver", "", "x" * 43, "")
    settings = b"profiles: [sim_xrf]\nworkers: 2\ntiled: {uri: 'http://127.0.0.1:8000'}\nspool_budget: 100000\n"
    where = folder / "state"
    where.mkdir(exist_ok=True)
    service = json.dumps(
        {"pid": 5, "ingest": "tcp://127.0.0.1:5620", "curve": [], "server_key": ""}
    )
    return [
        Decoder("geometry of a start document", texts, geometry, (DecodeError, GeometryError)),
        Decoder("energies of a start document", texts[1:2], energies, (DecodeError, NotUnderstood)),
        Decoder(
            "geometry of a result",
            [json.dumps(ScanGeometry.from_start(starts[0]).to_dict()).encode()],
            lambda data: ScanGeometry.from_dict(decode_json(data)),
            (DecodeError, GeometryError),
        ),
        Decoder(
            "profile YAML",
            [path.read_bytes() for path in shipped_profiles().values()],
            in_file(folder / "x.yaml", load_profile),
            (ProfileError,),
        ),
        Decoder(
            "settings YAML",
            [settings],
            in_file(folder / "s.yaml", load_settings),
            (SettingsError,),
        ),
        Decoder(
            "Kafka settings",
            [b"group.id: x\na: 1\n"],
            in_file(folder / "k.yaml", read_config),
            (SourceError,),
        ),
        Decoder(
            "service.json",
            [service.encode()],
            in_file(
                where / SERVICE_FILE, lambda path: locate(path.parent, explicit=None, profile=None)
            ),
            (PassError,),
        ),
        Decoder(
            "pass file",
            [owner.to_json(), approver.to_json()],
            in_file(folder / "x.pass", read_pass),
            (PassError,),
        ),
        *_models(),
    ]


def _models() -> list[Decoder]:
    spec = {"file": "a.npy", "shape": [2, 3], "dtype": "<f4", "nbytes": 24}
    key = "0" * 64
    valid: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (
            messages.InferenceJob,
            {
                "key": key,
                "run_uid": "u",
                "stream": "primary",
                "kind": "final",
                "recipe": "n2n",
                "parameters": {"a": 1},
                "meta": {"warnings": []},
                "spool": "/s",
                "arrays": {"counts": spec},
                "input_digest": "",
                "result_path": "/r",
                "host_id": "h",
            },
        ),
        (
            messages.InferenceResult,
            {
                "key": key,
                "fence": 1,
                "result_path": "/r",
                "digest": "d",
                "report": {},
                "regions": [],
                "timings": {"a": 1.0},
            },
        ),
        (
            messages.Heartbeat,
            {
                "worker": "w",
                "key": None,
                "fence": 0,
                "progress": 0.5,
                "steps": 1,
                "rss": 5,
                "credit": 1,
            },
        ),
        (messages.Fail, {"key": key, "fence": 1, "code": "c", "message": "m", "retryable": True}),
    ]

    def read(model: type[BaseModel]) -> Callable[[bytes], object]:
        return lambda data: model.model_validate(unpack(data))

    return [
        Decoder(
            f"messages.{model.__name__}", [pack(fields)], read(model), (WireError, ValidationError)
        )
        for model, fields in valid
    ]
