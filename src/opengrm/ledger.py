"""The ledger: every judgment on disk, keyed by content (design rule 5; docs/formats.md).

One SQLite file in WAL mode, one row a judgment, one commit a judgment: a kill at any moment loses at most the judgment
in flight. A row is found by its key and its item's id; the same content under two ids is generated once and kept under
both. Wall-clock seconds stand in a column of their own and are never exported, so that a resumed run and an
uninterrupted one export the same bytes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from opengrm.errors import OpenGRMError, UsageError
from opengrm.items import content_hash
from opengrm.judgments import TRANSIENT_ERRORS, Judgment, judgment_from_json

FORMAT = 1
_APPLICATION_ID = 0x47524D31  # "GRM1": tells our files from other SQLite files
_SCHEMA = (
    """CREATE TABLE judgments (
    key TEXT NOT NULL, item TEXT NOT NULL, sample INTEGER NOT NULL, model TEXT, template TEXT, temperature REAL,
    error_kind TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL, row TEXT NOT NULL,
    PRIMARY KEY (key, item)
)""",
    "CREATE INDEX by_item ON judgments (item)",
)
# Scores of meta RMs by a key over the meta RM and the text it read; ledgers made before there were any get the table.
_METAS = "CREATE TABLE IF NOT EXISTS metas (key TEXT PRIMARY KEY, model TEXT NOT NULL, meta REAL NOT NULL)"
_IN_ORDER = "ORDER BY item, model, template, temperature, sample, key"


class Added(NamedTuple):
    """What became of rows that were put: new ones, and those that were there (or came twice) and were replaced."""

    new: int
    known: int


class Ledger:
    """Judgments on disk. Use as a context manager, or call `close`.

    Args:
        path: the file; made if it is not there. None keeps the judgments in memory.
        create: False refuses to make a new file.

    Raises:
        UsageError: the file is not there (with `create=False`), is a folder, or is not a ledger.
        OpenGRMError: the file cannot be opened or written.
    """

    def __init__(self, path: str | Path | None, *, create: bool = True) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            if self.path.is_dir():
                raise UsageError(f"{self.path}: is a folder, expected a ledger file")
            if not self.path.exists() and not create:
                raise UsageError(f"{self.path}: no such ledger")
            if not self.path.parent.exists():
                raise UsageError(f"{self.path}: the folder {self.path.parent} does not exist")
        with self._explained():
            self._db = sqlite3.connect(
                ":memory:" if self.path is None else self.path, timeout=30, isolation_level=None
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        if not self._empty():
            self._check()  # before anything is changed: the file may be somebody else's
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        # The disk is waited for at checkpoints only: every 32 MiB of log instead of SQLite's 4.
        self._db.execute("PRAGMA wal_autocheckpoint=8000")
        if self._empty():
            self._db.execute("BEGIN IMMEDIATE")
            if self._empty():  # looked at again: another process may have been quicker
                for statement in (
                    *_SCHEMA,
                    f"PRAGMA application_id={_APPLICATION_ID}",
                    f"PRAGMA user_version={FORMAT}",
                ):
                    self._db.execute(statement)
            self._db.execute("COMMIT")
        self._check()

    def _check(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION_ID:
            raise UsageError(f"{self.path}: an SQLite file, but not a ledger of OpenGRM")
        if version != FORMAT:
            raise UsageError(f"{self.path}: ledger format {version}, this OpenGRM reads format {FORMAT}")
        self._db.execute(_METAS)

    def _read(self, key: str, row: str) -> Judgment:
        try:
            return judgment_from_json(json.loads(row))
        except (ValueError, TypeError) as error:
            raise OpenGRMError(f"{self.path}: the judgment under key {key} is damaged: {error}") from None

    def _empty(self) -> bool:
        return not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's own errors as one line that names the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise OpenGRMError(f"{self.path or 'ledger in memory'}: {error}") from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def __len__(self) -> int:
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM judgments").fetchone()[0])

    def put(self, judgment: Judgment, seconds: float | None = None) -> None:
        """Keep one judgment, committed. A judgment already there is replaced (a retried transient failure is).

        Args:
            judgment: a judgment without a key (an import) gets one from its content.
            seconds: wall-clock time that it took, kept beside it.
        """
        with self._explained():
            self._db.execute(_INSERT, _record(judgment, seconds))

    def put_all(self, judgments: Iterable[Judgment], run: str | None = None) -> Added:
        """Keep many judgments in one transaction.

        Args:
            judgments: those without a key (imports) get one from their content, so that a file read twice counts once.
            run: name of the run that they come from; goes into those keys. Minimal votes of two runs are often equal
                in every word: without a name the second run would be taken for the first read again.
        """
        before, rows = len(self), 0
        with self._explained():
            self._db.execute("BEGIN")
            try:
                for judgment in judgments:
                    rows += 1
                    self._db.execute(_INSERT, _record(judgment, None, run))
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        new = len(self) - before
        return Added(new, rows - new)

    def get(self, keys: Sequence[str], item: str) -> dict[str, Judgment]:
        """The judgments kept under these keys, for item id `item`; transient failures are left out.

        A judgment of the same content that was kept under another id is copied to this one.
        """
        found: dict[str, Judgment] = {}
        copies: dict[str, Judgment] = {}
        with self._explained():
            for start in range(0, len(keys), 500):  # SQLite bounds the number of parameters
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, item, row FROM judgments WHERE key IN ({marks}) ORDER BY item = ?, item"
                for key, owner, row in self._db.execute(query, (*part, item)):
                    judgment = self._read(key, row)
                    if judgment.error_kind in TRANSIENT_ERRORS:
                        continue
                    if owner == item:  # sorted last: the item's own row wins over another's
                        copies.pop(key, None)
                    else:
                        judgment = copies[key] = replace(judgment, item=item)
                    found[key] = judgment
        if copies:
            self.put_all(copies.values())
        return found

    def metas(self, keys: Sequence[str]) -> dict[str, float]:
        """The meta scores kept under these keys (see `judges/meta.py`)."""
        found: dict[str, float] = {}
        with self._explained():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                query = f"SELECT key, meta FROM metas WHERE key IN ({','.join('?' * len(part))})"
                found.update(self._db.execute(query, part).fetchall())
        return found

    def put_metas(self, metas: Mapping[str, float], model: str, judgments: Iterable[Judgment] = ()) -> None:
        """Keep meta scores of `model` by key, and rewrite the rows of `judgments`, in one transaction.

        A judgment that is not in this ledger is passed over.
        """
        with self._explained():
            self._db.execute("BEGIN")
            try:
                rows = ((key, model, meta) for key, meta in metas.items())
                self._db.executemany("INSERT OR REPLACE INTO metas VALUES (?,?,?)", rows)
                self._db.executemany(
                    "UPDATE judgments SET row = :row WHERE key = :key AND item = :item AND row <> :row",
                    ({"row": _encode(j.to_json()), "key": j.key, "item": j.item} for j in judgments if j.key),
                )
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def judgments(self, item: str | None = None) -> Iterator[Judgment]:
        """All judgments, or those of one item, sorted by item, model, template, temperature, sample and key."""
        where, values = ("", ()) if item is None else ("WHERE item = ? ", (item,))
        with self._explained():
            for key, row in self._db.execute(f"SELECT key, row FROM judgments {where}{_IN_ORDER}", values):
                yield self._read(key, row)

    def seconds(self, keys: Sequence[str]) -> dict[tuple[str, str], float]:
        """Wall-clock seconds of the judgments kept under these keys, by key and item id, where they were kept."""
        found: dict[tuple[str, str], float] = {}
        with self._explained():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, item, seconds FROM judgments WHERE key IN ({marks}) AND seconds IS NOT NULL"
                found.update(((key, item), seconds) for key, item, seconds in self._db.execute(query, part))
        return found

    def info(self) -> list[dict[str, Any]]:
        """One row for each model, template and temperature: items, judgments, missing by kind, tokens, seconds."""
        query = """SELECT model, template, temperature, count(DISTINCT item), count(*),
                          sum(prompt_tokens), sum(completion_tokens), sum(seconds)
                   FROM judgments GROUP BY model, template, temperature ORDER BY model, template, temperature"""
        kinds = """SELECT error_kind, count(*) FROM judgments WHERE error_kind IS NOT NULL
                   AND model IS ? AND template IS ? AND temperature IS ? GROUP BY error_kind ORDER BY error_kind"""
        names = (
            "model",
            "template",
            "temperature",
            "items",
            "judgments",
            "prompt_tokens",
            "completion_tokens",
            "seconds",
        )
        with self._explained():
            rows = [dict(zip(names, r, strict=True)) for r in self._db.execute(query).fetchall()]
            for row in rows:
                row["missing"] = dict(self._db.execute(kinds, (row["model"], row["template"], row["temperature"])))
        return rows


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_INSERT = "INSERT OR REPLACE INTO judgments VALUES (?,?,?,?,?,?,?,?,?,?,?)"


def _record(judgment: Judgment, seconds: float | None, run: str | None = None) -> tuple[Any, ...]:
    row: Mapping[str, Any] = judgment.to_json()
    if judgment.key is None:
        row = {**row, "key": "import:" + (content_hash(row) if run is None else content_hash(row, run))}
    return (
        row["key"], judgment.item, judgment.sample, judgment.model, judgment.template, judgment.temperature,
        judgment.error_kind, judgment.prompt_tokens, judgment.completion_tokens, seconds, _encode(row),
    )  # fmt: skip
