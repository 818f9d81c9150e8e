"""``/v1/datasets``: content-addressed, tokenised corpora."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Field

from millrace.data.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import (
    STATUS_OF_STATE,
    Content,
    Failure,
    Id,
    Int32,
    Int64,
    Number,
    Progress,
    RequestBody,
    Seed,
    content,
    failure,
    given,
    identifier,
    progress,
    seconds,
)
from millrace_runtime.errors import InvalidArgument

ROUTER = router("datasets", "/v1/datasets")

_FIELDS = {"source.files.names": "source.files", "source.examples.names": "source.files"}
SourceType = Literal["python_standard_library", "files", "examples"]


class Source(RequestBody):
    """Where documents come from: ``files`` (ids) are given with the types ``files`` and
    ``examples``. Of ``examples`` they hold what a fine-tuning job learns from, in one format."""

    type: SourceType
    files: Annotated[list[Id], Field(max_length=1000)] | None = None


class Recipe(RequestBody):
    """How documents become tokens; what is not given has a default."""

    vocabulary_size: Int32 | None = None
    heldout_fraction: Number | None = None
    near_duplicate_threshold: Number | None = None
    maximum_bytes: Int64 | None = None
    seed: Seed | None = None


class CreateDataset(RequestBody):
    source: Source
    display_name: str = ""
    recipe: Recipe | None = None


class Dataset(BaseModel):
    """``documents`` counts documents by their fate; ``content`` is null until it succeeds."""

    id: str
    object: Literal["dataset"] = "dataset"
    created_at: int
    updated_at: int
    display_name: str
    source: Source
    recipe: Recipe
    status: str
    progress: Progress | None
    error: Failure | None
    content: Content | None
    tokenizer_digest: str | None
    train_tokens: int
    heldout_tokens: int
    documents: dict[str, int]


@ROUTER.post("", response_model=Dataset)
async def create_dataset(body: CreateDataset, caller: CallerOf) -> Dataset:
    """Start building a dataset; training may be asked for at once and waits for it."""
    request = pb.CreateDatasetRequest(
        parent=caller.parent,
        display_name=body.display_name,
        source=_source(caller, body.source),
        recipe=pb.DatasetRecipe(**given(body.recipe)),
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.data.CreateDataset, request, _FIELDS)
    return _dataset(response.dataset)


@ROUTER.get("", response_model=ListObject[Dataset])
async def list_datasets(caller: CallerOf, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    request = pb.ListDatasetsRequest(
        parent=caller.parent, page_size=page_size(limit), page_token=token_after(after)
    )
    response = await upstream.call(caller.upstream.data.ListDatasets, request)
    items = [_dataset(dataset) for dataset in response.datasets]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{dataset_id}", response_model=Dataset)
async def get_dataset(dataset_id: str, caller: CallerOf) -> Dataset:
    request = pb.GetDatasetRequest(name=caller.name("datasets", dataset_id, "dataset"))
    response = await upstream.call(caller.upstream.data.GetDataset, request)
    return _dataset(response.dataset)


@ROUTER.post("/{dataset_id}/cancel", response_model=Dataset)
async def cancel_dataset(dataset_id: str, caller: CallerOf) -> Dataset:
    request = pb.CancelDatasetRequest(name=caller.name("datasets", dataset_id, "dataset"))
    response = await upstream.call(caller.upstream.data.CancelDataset, request)
    return _dataset(response.dataset)


def _source(caller: Caller, source: Source) -> pb.DatasetSource:
    if source.type == "python_standard_library":
        if source.files is not None:
            raise InvalidArgument(
                "'source.files' goes with the types 'files' and 'examples' alone",
                field="source.files",
            )
        return pb.DatasetSource(python_standard_library=pb.PythonStandardLibrary())
    names = [f"{caller.parent}/files/{file}" for file in source.files or ()]
    if source.type == "examples":
        return pb.DatasetSource(examples=pb.ExampleSet(names=names))
    return pb.DatasetSource(files=pb.FileSet(names=names))


def _dataset(dataset: pb.Dataset) -> Dataset:
    kind = cast(SourceType, dataset.source.WhichOneof("source"))
    names = (*dataset.source.files.names, *dataset.source.examples.names)
    files = [identifier(name) or "" for name in names]
    return Dataset(
        id=identifier(dataset.name) or "",
        created_at=seconds(dataset.create_time),
        updated_at=seconds(dataset.update_time),
        display_name=dataset.display_name,
        source=Source(type=kind, files=files or None),
        recipe=Recipe(**{field.name: value for field, value in dataset.recipe.ListFields()}),
        status=STATUS_OF_STATE[dataset.state],
        progress=progress(dataset.progress),
        error=failure(dataset.failure),
        content=content(dataset.content),
        tokenizer_digest=dataset.tokenizer_digest or None,
        train_tokens=dataset.train_tokens,
        heldout_tokens=dataset.heldout_tokens,
        documents=dict(dataset.documents),
    )
