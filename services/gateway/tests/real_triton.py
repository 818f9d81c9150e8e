"""A real tritonserver with two small models: one that answers at once, and one that streams."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.grpc import model_config_pb2 as pb

from millrace_mesh.triton import (
    GRPC_HEADER,
    TritonPorts,
    tritonserver_command,
    tritonserver_environment,
)
from millrace_testkit.servers import free_port, is_listening, wait_until

ENVIRONMENT = Path(__file__).parents[3] / ".venv-triton"
CONTROL_KEY = "key-of-the-tests"

# Adds its numbers up, and gives its texts back.
SUMS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        numbers = pb_utils.get_input_tensor_by_name(request, "numbers").as_numpy()
        outputs = [pb_utils.Tensor("total", np.array([numbers.sum()], numbers.dtype))]
        texts = pb_utils.get_input_tensor_by_name(request, "texts")
        if texts is not None:
            outputs.append(pb_utils.Tensor("echo", texts.as_numpy()))
        return pb_utils.InferenceResponse(outputs)
"""

# Says the words of its prompt one by one, with the tensors of Millrace's text engines. It goes on
# for ever when asked to, notes in a file that it was cancelled, and refuses what it does not know.
PARROT = """
import json
import os
import threading
import time
import numpy as np
import triton_python_backend_utils as pb_utils

KNOWN = {"max_tokens", "for_ever", "fail_after"}

def text(name, value):
    return pb_utils.Tensor(name, np.array([value.encode()], dtype=np.object_))

def count(name, value):
    return pb_utils.Tensor(name, np.array([value], dtype=np.int32))

class TritonPythonModel:
    def initialize(self, args):
        self.folder = args["model_repository"]

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.speak, args=(request, sender)).start()

    def speak(self, request, sender):
        read = lambda name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0].decode()
        words, sampling = read("prompt").split(), json.loads(read("sampling"))
        try:
            if unknown := sampling.keys() - KNOWN:
                raise pb_utils.TritonModelException
            for number, word in enumerate(words[: sampling.get("max_tokens")]):
                if number == sampling.get("fail_after", -1):
                    self.end(sender, "UNAVAILABLE", "the parrot flew away")
                    return
                is_last = number + 1 == len(words[: sampling.get("max_tokens")])
                outputs = [text("text", word), count("token_count", 1)]
                outputs.append(text("finish_reason", "stop" if is_last else ""))
                if is_last:
                    outputs.append(count("prompt_token_count", len(words)))
                sender.send(pb_utils.InferenceResponse(outputs))
            while sampling.get("for_ever"):
                if sender.is_cancelled():
                    open(os.path.join(self.folder, "cancelled"), "a").write("x")
                    break
                outputs = [text("text", "."), count("token_count", 1)]
                sender.send(pb_utils.InferenceResponse(outputs))
                time.sleep(0.01)
        except pb_utils.TritonModelException:
            names = ", ".join(sorted(unknown))
            self.end(sender, "INVALID_ARG", f"unknown sampling parameters: {names}")
            return
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def end(self, sender, code, message):
        # In one message with the flag: Triton ends the stream at the error, and what comes after
        # it finds no stream any more.
        error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
        response = pb_utils.InferenceResponse([], error=error)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


class RealTriton:
    """tritonserver on ports of its own, as the mesh starts it."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "models"
        self._log = folder / "log"
        self.ports = TritonPorts(grpc=free_port(), http=free_port(), metrics=free_port())
        self.address = f"127.0.0.1:{self.ports.grpc}"

    def start(self) -> None:
        self.repository.mkdir(parents=True)
        command = tritonserver_command(
            ENVIRONMENT, self.repository, self.ports, CONTROL_KEY, exit_timeout_seconds=2
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=tritonserver_environment(ENVIRONMENT), stdout=log, stderr=log
            )
        wait_until(lambda: is_listening(self.ports.grpc), 60, "tritonserver")
        self._add("default.sums", SUMS, (1, 2), is_decoupled=False)
        self._add("default.parrot", PARROT, (1,), is_decoupled=True)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def was_cancelled(self) -> bool:
        """Whether the parrot was told to be quiet since this was asked last."""
        note = self.repository / "default.parrot" / "cancelled"
        if not note.exists():
            return False
        note.unlink()
        return True

    def _add(self, name: str, code: str, versions: Sequence[int], is_decoupled: bool) -> None:
        folder = self.repository / name
        for version in versions:
            (folder / str(version)).mkdir(parents=True)
            (folder / str(version) / "model.py").write_text(code)
        config = _config(name, is_decoupled)
        config.version_policy.specific.versions.extend(versions)
        (folder / "config.pbtxt").write_text(str(config))
        with triton.InferenceServerClient(self.address) as client:
            deadline = time.monotonic() + 60
            while not client.is_server_live(client_timeout=60):
                assert time.monotonic() < deadline, "tritonserver does not live"
            client.load_model(name, headers={GRPC_HEADER: CONTROL_KEY}, client_timeout=60)


def is_installed() -> bool:
    return os.access(ENVIRONMENT / "tritonserver" / "bin" / "tritonserver", os.X_OK)


def _config(name: str, is_decoupled: bool) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=0)
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.model_transaction_policy.decoupled = is_decoupled
    if is_decoupled:
        for tensor in ("prompt", "sampling"):
            config.input.add(name=tensor, data_type=pb.TYPE_STRING, dims=[1])
        for tensor in ("text", "finish_reason"):
            config.output.add(name=tensor, data_type=pb.TYPE_STRING, dims=[1])
        for tensor in ("token_count", "prompt_token_count"):
            config.output.add(name=tensor, data_type=pb.TYPE_INT32, dims=[1])
    else:
        config.input.add(name="numbers", data_type=pb.TYPE_FP32, dims=[-1])
        config.input.add(name="texts", data_type=pb.TYPE_STRING, dims=[-1], optional=True)
        config.output.add(name="total", data_type=pb.TYPE_FP32, dims=[1])
        config.output.add(name="echo", data_type=pb.TYPE_STRING, dims=[-1])
    return config
