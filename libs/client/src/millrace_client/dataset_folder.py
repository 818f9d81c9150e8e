"""A folder of Hugging Face's ``datasets`` as one parquet file, which the service reads.

Understood are what ``Dataset.save_to_disk`` writes (Arrow streams that ``state.json`` names; of a
``DatasetDict``, one of its splits) and folders of parquet files, as on the Hub. It is read with
pyarrow, which whoever has such a folder has.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from millrace_client.errors import MillraceError

_STATE_NAME = "state.json"
_SPLITS_NAME = "dataset_dict.json"
_GROUP_ROWS = 1000
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}.*")


class NotADataset(MillraceError):
    """The message says what is wrong with the folder."""


@contextmanager
def as_parquet(folder: Path) -> Iterator[Path]:
    """A temporary file with all rows of a folder, in their order.

    Raises:
        NotADataset: it is none, has several splits, is damaged, or pyarrow is missing.
    """
    batches = _batches(folder)
    with tempfile.TemporaryDirectory(prefix="millrace-") as temporary:
        path = Path(temporary) / f"{folder.resolve().name}.parquet"
        _write(folder, batches, path)
        yield path


def _batches(folder: Path) -> Iterator[Any]:
    """Arrow record batches; what is no dataset is refused before the first is read."""
    if (folder / _SPLITS_NAME).is_file():
        splits = _document(folder / _SPLITS_NAME).get("splits", [])
        raise NotADataset(f"{folder} holds the splits {', '.join(splits)}; give {folder}/<split>")
    if (folder / _STATE_NAME).is_file():
        names = [str(each["filename"]) for each in _document(folder / _STATE_NAME)["_data_files"]]
        return _arrow(folder, [folder / Path(name).name for name in names])
    shards = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not shards:
        raise NotADataset(
            f"{folder} is no dataset: it has neither the {_STATE_NAME} of save_to_disk nor "
            "parquet files"
        )
    matches = [_SHARD.fullmatch(shard.name) for shard in shards]
    splits = sorted({match["split"] for match in matches if match})
    if len(splits) > 1:
        message = f"{folder} holds the splits {', '.join(splits)}; give a folder with one of them"
        raise NotADataset(message)
    return _parquet(folder, shards)


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotADataset(f"{path} is not JSON: {error}") from None


def _arrow(folder: Path, shards: list[Path]) -> Iterator[Any]:
    pyarrow = _pyarrow(folder)
    for shard in shards:
        with pyarrow.memory_map(str(shard)) as source, pyarrow.ipc.open_stream(source) as reader:
            yield from reader


def _parquet(folder: Path, shards: list[Path]) -> Iterator[Any]:
    _pyarrow(folder)
    from pyarrow import parquet

    for shard in shards:
        with parquet.ParquetFile(shard) as file:
            yield from file.iter_batches(batch_size=_GROUP_ROWS)


def _write(folder: Path, batches: Iterator[Any], path: Path) -> None:
    pyarrow = _pyarrow(folder)
    from pyarrow import parquet

    writer = None
    try:
        for batch in batches:
            table = pyarrow.Table.from_batches([batch])
            if writer is None:
                writer = parquet.ParquetWriter(path, table.schema)
            writer.write_table(table.cast(writer.schema), row_group_size=_GROUP_ROWS)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise NotADataset(f"{folder} cannot be read: {error}") from None
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise NotADataset(f"{folder} holds no rows")


def _pyarrow(folder: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise NotADataset(f"to read {folder}, install pyarrow (pip install pyarrow)") from None
    return pyarrow
