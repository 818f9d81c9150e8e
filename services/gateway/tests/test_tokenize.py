"""The tokenizer's endpoints, on artifacts as the compressor commits them."""

import json
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import CHATML
from gateway_mesh import Mesh
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from millrace_runtime import chat_template, manifest

END, START = "<|im_end|>", "<|im_start|>"
CONFIGURATION = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": {"content": END, "special": True},
    "pad_token": END,
}


def trained(text: str) -> Tokenizer:
    """Byte-level BPE that puts ``START`` before what it encodes, when asked to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(token, special=True) for token in (END, START)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return tokenizer


def artifact(mesh: Mesh, name: str, tokenizer: Tokenizer | None) -> tuple[Path, str]:
    """Commit an artifact; its folder and digest."""
    target = mesh.data_root / name
    temporary = manifest.temporary_sibling(target)
    (temporary / "openvino_model.bin").write_bytes(b"weights")
    if name == "tuned":
        (temporary / "README.md").write_text("---\nlicense: mit\n---\n# Grüße\n")
    if tokenizer is not None:
        tokenizer.save(str(temporary / "tokenizer.json"))
        (temporary / "tokenizer_config.json").write_text(json.dumps(CONFIGURATION))
    return target, manifest.commit(temporary, target, "artifact", {"name": name})


def serve(mesh: Mesh, **tokenizers: Tokenizer | None) -> dict[str, Path]:
    """Serve a version for each tokenizer, all with a share of the traffic, the first's largest."""
    folders, routes = {}, mesh.route()
    del routes.targets[:]
    for number, (name, tokenizer) in enumerate(tokenizers.items(), 1):
        folder, digest = artifact(mesh, name, tokenizer)
        version = mesh.registry.add_version("default", number)
        version.artifact.uri, version.artifact.digest = folder.as_uri(), digest
        target = mesh.route(version=number, artifact_digest=digest, share=1 / number).targets[0]
        routes.targets.append(target)
        folders[name] = folder
    mesh.serve_routes([routes])
    return folders


def post(mesh: Mesh, path: str, **body: Any) -> Any:
    response = mesh.http().post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_what_lm_eval_asks(mesh: Mesh, prefix: str) -> None:
    tokenizer = trained("the cat sat on the mat")
    serve(mesh, remote=tokenizer)
    info = mesh.http().get(f"{prefix}/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"], info["pad_token"]) == (END, None, END)
    assert (info["chat_template"], info["tokenizer_class"]) == (CHATML, "PreTrainedTokenizerFast")
    text = f"the cat 🙂{END}"
    answer = post(mesh, f"{prefix}/tokenize", prompt=text, add_special_tokens=False)
    assert answer["tokens"] == tokenizer.encode(text, add_special_tokens=False).ids
    assert answer["tokens"][-1] == 0, "a special token in the text counts as one"
    assert post(mesh, f"{prefix}/detokenize", tokens=answer["tokens"]) == {"prompt": text}


def test_a_prompt(mesh: Mesh) -> None:
    tokenizer = trained("one two three")
    serve(mesh, prompt=tokenizer)
    answer = post(mesh, "/tokenize", model="demo", prompt="one two", return_token_strs=True)
    expected = tokenizer.encode("one two")
    assert answer == {
        "count": len(expected.ids),
        "max_model_len": 512,
        "tokens": expected.ids,
        "token_strs": expected.tokens,
    }
    assert answer["tokens"][0] == 1, "special tokens are added unless one says no"
    assert post(mesh, "/tokenize", prompt="", add_special_tokens=False)["tokens"] == []


def test_a_chat_is_tokenized_as_it_is_asked(mesh: Mesh) -> None:
    tokenizer = trained("user assistant hello")
    serve(mesh, chat=tokenizer)
    messages = [{"role": "user", "content": "hello"}]
    for asks in (True, False):
        text = chat_template.render(
            CHATML, messages, bos_token="", eos_token=END, add_generation_prompt=asks
        )
        answer = post(mesh, "/tokenize", messages=messages, add_generation_prompt=asks)
        assert answer["tokens"] == tokenizer.encode(text, add_special_tokens=False).ids


def test_each_version_has_its_own(mesh: Mesh) -> None:
    first, second = trained("aaaa bbbb aaaa bbbb"), trained("cccc dddd cccc dddd")
    serve(mesh, first=first, second=second)
    client = mesh.http()
    for reference, number, tokenizer in (
        ("demo", 1, first),
        ("demo@1", 1, first),
        ("demo@2", 2, second),
    ):
        body = {"model": reference, "prompt": "aaaa cccc"}
        response = client.post("/tokenize", json=body)
        assert response.json()["tokens"] == tokenizer.encode("aaaa cccc").ids
        assert response.headers["x-millrace-version"] == f"demo@{number}"


def test_a_damaged_tokenizer_is_not_used(mesh: Mesh) -> None:
    folder = serve(mesh, damaged=trained("x y z"))["damaged"] / "tokenizer.json"
    whole = folder.read_bytes()
    folder.write_bytes(whole.replace(b"x", b"y", 1))
    response = mesh.http().post("/tokenize", json={"prompt": "x"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "artifact_unreadable"
    folder.write_bytes(whole)
    assert post(mesh, "/tokenize", prompt="x")["count"] == 2, "and read again once it is whole"


def test_an_artifact_elsewhere_or_without_a_tokenizer(mesh: Mesh, tmp_path: Path) -> None:
    serve(mesh, bare=None)
    response = mesh.http().get("/tokenizer_info")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "no_tokenizer")
    version = mesh.registry.versions["tenants/default/models/demo/versions/1"]
    version.artifact.uri = tmp_path.as_uri()
    mesh.serve_routes([mesh.route(artifact_digest="sha256:" + "cd" * 32)])
    assert mesh.http().get("/tokenizer_info").status_code == 503


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/tokenize", {"prompt": "x", "chat_template": "y"}, "chat_template"),
        ("/detokenize", {"tokens": [1, 999]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_mistakes(mesh: Mesh, path: str, body: dict[str, Any], param: str) -> None:
    serve(mesh, mistakes=trained("x"))
    response = mesh.http().post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_which_model(mesh: Mesh) -> None:
    mesh.serve_routes([mesh.route(), mesh.route("other")])
    response = mesh.http().post("/tokenize", json={"prompt": "x"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model"
    assert "demo, other" in response.json()["error"]["message"]
    assert mesh.http().get("/tokenizer_info?model=nope").status_code == 404
    client = mesh.http()
    del client.headers["authorization"]
    assert client.get("/tokenizer_info").status_code == 401


def test_a_models_card_is_that_of_its_artifact(mesh: Mesh) -> None:
    folders = serve(mesh, tuned=trained("a b c"))
    found = mesh.http().get("/v1/models/demo@1/card")
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == "text/markdown; charset=utf-8"
    assert found.text == "---\nlicense: mit\n---\n# Grüße\n"
    (folders["tuned"] / "README.md").write_text("---\nlicense: none\n---\n")
    changed = mesh.http().get("/v1/models/demo@1/card")
    assert (changed.status_code, changed.json()["error"]["code"]) == (503, "artifact_unreadable")


def test_a_model_without_a_card_says_so(mesh: Mesh) -> None:
    serve(mesh, plain=trained("a b c"))
    found = mesh.http().get("/v1/models/demo@1/card")
    assert found.status_code == 404
    assert "has no card" in found.json()["error"]["message"]
