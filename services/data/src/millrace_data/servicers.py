"""The stage's services, put on one server."""

import grpc

from millrace_data.api import SERVICE_NAME, DataServicer
from millrace_data.app import DatasetApp, FileApp
from millrace_data.prompt_api import PROMPT_SERVICE_NAME, PromptServicer
from millrace_data.prompts import PromptApp
from millrace_data.row_api import ROW_SERVICE_NAME, RowServicer
from millrace_data.row_search import RowSearch
from millrace_data.upload_api import UPLOAD_SERVICE_NAME, UploadServicer
from millrace_data.uploads import UploadApp

SERVICE_NAMES = (SERVICE_NAME, UPLOAD_SERVICE_NAME, PROMPT_SERVICE_NAME, ROW_SERVICE_NAME)


class Servicers:
    """Of files and datasets, of uploads, of prompts, and of rows."""

    def __init__(
        self,
        files: FileApp,
        datasets: DatasetApp,
        uploads: UploadApp,
        prompts: PromptApp,
        rows: RowSearch,
    ) -> None:
        data = DataServicer(files, datasets)
        self._servicers = (
            UploadServicer(uploads, data),
            PromptServicer(prompts),
            RowServicer(rows),
        )

    def register(self, server: grpc.Server) -> None:
        """All of ``SERVICE_NAMES``: that of uploads registers the stage's own with itself."""
        for servicer in self._servicers:
            servicer.register(server)
