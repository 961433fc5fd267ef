"""Documents that bluesky-kafka publishes: one message is ``[name, document]`` in msgpack or JSON.

bluesky-kafka encodes with msgpack_numpy, whose decoder unpickles; it is not used here. With a consumer
group, how far this source got is told to the broker only after the documents are in the log on disk, so
that nothing is lost when this process dies: the last documents come twice instead.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from inscan.callbacks.sources.decode import Arrays, DecodeError, decode_pair
from inscan.callbacks.sources.interface import Sink, SourceError
from inscan.callbacks.yaml_file import YamlError, read_yaml

__all__ = ["KafkaSource", "read_config"]

logger = logging.getLogger(__name__)

_BATCH = 500
_POLL_S = 0.1
_FIRST_ANSWER_S = 10.0
_FIXED = ("enable.auto.commit", "group.id", "bootstrap.servers", "auto.offset.reset")


class KafkaSource:
    """Documents of Kafka topics.

    Parameters
    ----------
    servers : str
        Bootstrap servers, ``host:port,host:port``.
    topics : sequence of str
    group : str, optional
        Consumer group: a new one begins with what comes from now on, a known one where it stopped. Without,
        each start begins with what comes from now on, of the partitions that there are.
    config : mapping, optional
        Further settings of librdkafka, such as ``security.protocol``.

    Attributes
    ----------
    label, ready, counts
        See `inscan.callbacks.sources.interface.Source`. Counted are ``documents``, ``garbage``, ``commits``, and
        ``errors`` of the broker's.
    last_garbage : str
        Why the last message was refused.

    Raises
    ------
    ValueError
        For settings that this source needs for itself.
    """

    def __init__(
        self,
        servers: str,
        topics: Sequence[str],
        *,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not topics:
            raise ValueError("name at least one Kafka topic")
        taken = sorted(set(config or {}) & set(_FIXED))
        if taken:
            raise ValueError(
                f"Kafka settings {', '.join(taken)} are not free: this source sets them"
            )
        self.label = f"Kafka {servers} {','.join(topics)}"
        self.ready = threading.Event()
        self.counts: Counter[str] = Counter()
        self.last_garbage = ""
        self._servers = servers
        self._topics = list(topics)
        self._group = group
        self._config = dict(config or {})
        self._arrays = Arrays()

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Take messages until told to stop; see `Source`.

        Raises
        ------
        SourceError
            When confluent-kafka is not installed, a setting is refused, no broker answers at first, or a topic does
            not exist. Brokers that go away later are waited for.
        """
        try:
            import confluent_kafka as kafka
        except ImportError as error:
            raise SourceError(
                'Kafka needs a client library that is not installed: pip install "inscan[kafka]"'
            ) from error
        try:
            consumer = kafka.Consumer(self._settings(), logger=logging.getLogger("librdkafka"))
        except (kafka.KafkaException, ValueError) as error:
            raise SourceError(f"{self.label}: librdkafka refuses its settings: {error}") from error
        try:
            partitions = self._partitions(kafka, consumer)
            if self._group is None:
                self._begin(consumer, partitions)
            else:
                consumer.subscribe(self._topics, on_assign=self._begin, on_revoke=self._pause)
            while not stop.is_set():
                self._take(kafka, consumer, sink)
        finally:
            self.ready.clear()
            consumer.close()

    def _settings(self) -> dict[str, Any]:
        return {
            **self._config,
            "bootstrap.servers": self._servers,
            "group.id": self._group or f"inscan-{uuid4().hex}",
            "enable.auto.commit": False,
            # Before anything was committed there is no place to go on from; `_begin` makes one.
            "auto.offset.reset": "latest",
            "error_cb": self._on_error,
        }

    def _on_error(self, error: Any) -> None:
        self.counts["errors"] += 1
        if self.counts["errors"] == 1:
            logger.warning("%s: %s", self.label, error)

    def _partitions(self, kafka: Any, consumer: Any) -> list[Any]:
        found = []
        for topic in self._topics:
            try:
                known = consumer.list_topics(topic, timeout=_FIRST_ANSWER_S).topics[topic]
            except (kafka.KafkaException, KeyError) as error:
                raise SourceError(
                    f"{self.label}: no broker answers ({error}); is the address right, do they listen?"
                ) from error
            if known.error is not None:
                raise SourceError(f"{self.label}: topic {topic!r}: {known.error}")
            found += [kafka.TopicPartition(topic, number) for number in known.partitions]
        return found

    def _begin(self, consumer: Any, partitions: list[Any]) -> None:
        """Fix where each partition begins: a document that comes from now on is not missed."""
        try:
            known = partitions
            if self._group is not None:
                known = consumer.committed(partitions, timeout=_FIRST_ANSWER_S)
            for partition in known:
                if partition.offset < 0:
                    _, partition.offset = consumer.get_watermark_offsets(
                        partition, timeout=_FIRST_ANSWER_S
                    )
            consumer.assign(known)
            if self._group is not None and known:
                consumer.commit(offsets=known, asynchronous=False)
        except Exception as error:  # noqa: BLE001 - librdkafka's callback raises it out of consume() as it is
            raise SourceError(f"{self.label}: partitions cannot be taken over: {error}") from error
        self.ready.set()

    def _pause(self, consumer: Any, partitions: list[Any]) -> None:
        self.ready.clear()

    def _take(self, kafka: Any, consumer: Any, sink: Sink) -> None:
        messages = consumer.consume(_BATCH, timeout=_POLL_S)
        taken = 0
        for message in messages:
            error = message.error()
            if error is not None:
                if error.code() != kafka.KafkaError._PARTITION_EOF:
                    self._on_error(error)
                continue
            taken += 1
            self._message(message.value() or b"", sink)
        if taken and self._group is not None:
            try:
                consumer.commit(asynchronous=False)
                self.counts["commits"] += 1
            except kafka.KafkaException as error:  # then they come again
                self.counts["errors"] += 1
                logger.warning(
                    "%s: the broker does not take down how far we are: %s", self.label, error
                )

    def _message(self, data: bytes, sink: Sink) -> None:
        try:
            name, doc = decode_pair(data, self.counts)
        except DecodeError as error:
            self.counts["garbage"] += 1
            self.last_garbage = str(error)
            if self.counts["garbage"] == 1:
                logger.warning(
                    "%s: a message is no document (%s); more are counted", self.label, error
                )
            return
        sink(*self._arrays(name, doc))
        self.counts["documents"] += 1


def read_config(path: Path) -> dict[str, Any]:
    """Read librdkafka settings from a YAML file of plain keys and values.

    Raises
    ------
    SourceError
        If it cannot be read, or is no such file.
    """
    try:
        loaded = read_yaml(path)
    except (OSError, YamlError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    plain = (str, int, float, bool)
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, plain) for key, value in loaded.items()
    ):
        raise SourceError(f"{path}: expected lines `setting: value`, as librdkafka names them")
    return loaded
