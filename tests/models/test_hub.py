"""Of a repository on a hub, all that is loaded is fetched, and no weights besides; the client is the real one."""

import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from safetensors.torch import load_file, save_file
from tiny import autoencoder, save_class_table, save_pipeline, small_unet, text_unet

from dmqbench.config.compose import compose
from dmqbench.config.job import make_job
from dmqbench.models import location
from dmqbench.models.adapter import load_adapter
from dmqbench.models.folders import WEIGHTS, ModelError, ModelSource
from dmqbench.models.location import locate
from dmqbench.models.sources import load_model

COMMIT = "0123456789" * 4
BRANCH = "main"
FP16 = "diffusion_pytorch_model.fp16.safetensors"
SHARDED = "20KB"


class Hub(ThreadingHTTPServer):
    """One repository, and what was asked of it."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, folder))
        self.fetched: set[str] = set()
        self.asked = 0
        self.down = False
        self.refusal: str | None = None
        """What it says instead of any file, by its own name for that."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def __init__(self, folder: Path, *arguments) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.server.asked += 1
        path = unquote(urlsplit(self.path).path)
        if self.server.down:
            return self._answer(403, b"")
        if self.server.refusal:
            return self._answer(403, b"", **{"X-Error-Code": self.server.refusal})
        if "/tree/" in path:
            files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
            entries = [
                {
                    "type": "file",
                    "path": file.relative_to(self.folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": "0" * 40,
                }
                for file in files
            ]
            return self._answer(200, json.dumps(entries).encode())
        if path.startswith("/api/"):
            return self._answer(200, json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": []}).encode())
        name = re.sub(rf".*/resolve/({COMMIT}|{BRANCH})/", "", path)
        if not (self.folder / name).is_file():
            return self._answer(404, b"")
        if self.command == "GET":
            self.server.fetched.add(name)
        return self._answer(200, (self.folder / name).read_bytes(), ETag=f'"{name}"')

    do_HEAD = do_GET

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "repository")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("no_proxy", "*")
    for name, value in {"HF_HUB_OFFLINE": False, "ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    location._snapshot.cache_clear()
    yield server
    location._snapshot.cache_clear()
    server.shutdown()
    server.server_close()


SOURCE = ModelSource("hub", "someone/model", revision=COMMIT)


def saved(folder: Path, **options) -> None:
    """A pipeline whose network is saved with these options."""
    save_pipeline(folder, small_unet())
    (folder / "unet" / WEIGHTS).unlink()
    small_unet().save_pretrained(folder / "unet", **options)


def beside(folder: Path, name: str) -> None:
    save_file(load_file(folder / "unet" / WEIGHTS), folder / "unet" / name, {"format": "pt"})


FETCHED = {
    "a plain file": (lambda f: saved(f), {WEIGHTS}),
    "a variant alone": (lambda f: saved(f, variant="fp16"), {FP16}),
    "a plain file beside a variant": (lambda f: [saved(f), beside(f, FP16)], {WEIGHTS}),
    "a plain file beside a pickle": (
        lambda f: [saved(f), (f / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")],
        {WEIGHTS},
    ),
    "shards": (lambda f: saved(f, max_shard_size=SHARDED), "diffusion_pytorch_model-"),
    "shards of a variant": (
        lambda f: saved(f, variant="fp16", max_shard_size=SHARDED),
        "diffusion_pytorch_model.fp16-",
    ),
    "shards beside those of a variant": (
        lambda f: [
            saved(f, max_shard_size=SHARDED),
            small_unet().save_pretrained(f / "unet", variant="fp16", max_shard_size=SHARDED),
        ],
        "diffusion_pytorch_model-",
    ),
}


@pytest.mark.parametrize("layout", FETCHED)
def test_the_weights_that_are_loaded_are_fetched_and_no_others(hub, tmp_path, layout):
    write, expected = FETCHED[layout]
    write(tmp_path / "repository")
    (tmp_path / "repository" / "text_encoder").mkdir()
    (tmp_path / "repository" / "text_encoder" / WEIGHTS).write_bytes(b"another part's")
    model = load_model(SOURCE)
    assert model.sample_shape == (1, 8, 8)
    weights = {name for name in hub.fetched if name.endswith((".safetensors", ".bin"))}
    there = {path.name for path in (tmp_path / "repository" / "unet").glob("*.safetensors")}
    if isinstance(expected, str):
        expected = {name for name in there if name.startswith(expected)}
        assert len(expected) > 1
    assert weights == {f"unet/{name}" for name in expected}
    asked = hub.asked
    for _ in range(3):
        locate(SOURCE)
    assert hub.asked == asked


def test_a_bare_network_and_a_decoder_in_a_variant_are_fetched(hub, tmp_path):
    small_unet().save_pretrained(tmp_path / "repository", variant="ema")
    assert load_model(SOURCE).sample_shape == (1, 8, 8)
    assert hub.fetched == {"config.json", "diffusion_pytorch_model.ema.safetensors"}


def test_a_table_of_classes_is_fetched(hub, tmp_path):
    table = save_class_table(save_pipeline(tmp_path / "repository", text_unet()))
    cond = load_adapter(SOURCE).conditioner.conditions("eval", 0, [4])
    assert cond["encoder_hidden_states"].tolist() == [[table[4].tolist()]]


def test_a_decoder_is_fetched_in_the_one_form_that_it_has(hub, tmp_path):
    save_pipeline(tmp_path / "repository", small_unet())
    autoencoder().save_pretrained(tmp_path / "repository" / "vae", variant="fp16")
    locate(SOURCE)
    assert {name for name in hub.fetched if name.endswith(".safetensors")} == {f"unet/{WEIGHTS}", f"vae/{FP16}"}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda f: [saved(f, variant="fp16"), saved_as_ema(f)], "holds both .*ema.safetensors and .*fp16.safetensors"),
        (lambda f: [saved(f), small_unet().save_pretrained(f / "transformer")], "holds both unet and transformer"),
        (lambda f: [saved(f), pickled(f)], "only pickled weights"),
    ],
)
def test_what_cannot_be_used_is_refused_before_its_weights_are_fetched(hub, tmp_path, write, said):
    write(tmp_path / "repository")
    with pytest.raises(ModelError, match=said):
        locate(SOURCE)
    assert not [name for name in hub.fetched if name.endswith((".safetensors", ".bin"))]


def saved_as_ema(folder: Path) -> None:
    small_unet().save_pretrained(folder / "unet", variant="ema")


def pickled(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def test_a_failure_is_not_remembered_and_what_was_fetched_is_used_offline(hub, tmp_path, monkeypatch):
    saved(tmp_path / "repository", variant="fp16")
    hub.down = True
    with pytest.raises(ModelError, match="neither cached nor to be had"):
        locate(SOURCE)
    hub.down = False
    folder = locate(SOURCE)
    location._snapshot.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = hub.asked
    assert locate(SOURCE) == folder
    assert hub.asked == asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    location._snapshot.cache_clear()
    hub.down = True
    assert locate(SOURCE) == folder
    (folder / "unet" / FP16).unlink()
    location._snapshot.cache_clear()
    with pytest.raises(ModelError, match="is missing; fetch it once while online: hf download"):
        locate(SOURCE)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ("GatedRepo", "is gated: accept its terms"),
        ("RepoNotFound", "not for all"),
        ("RevisionNotFound", "no such"),
    ],
)
def test_a_refusal_says_what_to_do(hub, tmp_path, refusal, said):
    saved(tmp_path / "repository")
    hub.refusal = refusal
    with pytest.raises(ModelError, match=said) as error:
        locate(SOURCE)
    assert "\n" not in str(error.value)


def test_network_and_scheduler_of_one_folder_are_both_fetched(hub, tmp_path):
    folder = save_pipeline(tmp_path / "repository", small_unet(class_entries=None))
    for part in ("unet", "scheduler"):
        for path in (folder / part).iterdir():
            path.rename(folder / path.name)
        (folder / part).rmdir()
    assert load_adapter(SOURCE).schedule.num_train_timesteps == 1000
    assert hub.fetched == {"config.json", "scheduler_config.json", WEIGHTS}


def test_a_branch_is_pinned_to_its_commit_and_that_is_said_once(hub, tmp_path, caplog):
    save_pipeline(tmp_path / "repository", small_unet(class_entries=None))
    words = ["model=hub", "model.path=someone/model", f"model.revision={BRANCH}", "method=rtn", "bits=w8a8"]
    assert {make_job(compose(words)).model.revision for _ in range(2)} == {COMMIT}
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("dmqbench")]
    assert line.startswith(f"model.revision={BRANCH} of someone/model is {COMMIT} now")
    words[2] = f"model.revision={COMMIT}"
    assert make_job(compose(words)).model.revision == COMMIT
    assert len(caplog.records) == 1
