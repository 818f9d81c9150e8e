"""The stage's services, put on one server."""

import grpc

from millrace_data.api import SERVICE_NAME, DataServicer
from millrace_data.app import DatasetApp, FileApp
from millrace_data.prompt_api import PROMPT_SERVICE_NAME, PromptServicer
from millrace_data.prompts import PromptApp
from millrace_data.upload_api import UPLOAD_SERVICE_NAME, UploadServicer
from millrace_data.uploads import UploadApp

SERVICE_NAMES = (SERVICE_NAME, UPLOAD_SERVICE_NAME, PROMPT_SERVICE_NAME)


class Servicers:
    """Of files and datasets, of uploads, and of prompts."""

    def __init__(
        self, files: FileApp, datasets: DatasetApp, uploads: UploadApp, prompts: PromptApp
    ) -> None:
        data = DataServicer(files, datasets)
        self._servicers = (UploadServicer(uploads, data), PromptServicer(prompts))

    def register(self, server: grpc.Server) -> None:
        """All of ``SERVICE_NAMES``: that of uploads registers the stage's own with itself."""
        for servicer in self._servicers:
            servicer.register(server)
