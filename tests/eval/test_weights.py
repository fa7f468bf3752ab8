import hashlib
import http.server
import re
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from dmqbench.config.metric_facts import OWN_METRICS
from dmqbench.config.names import INCEPTIONS, LPIPS_BACKBONES
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval import weights
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.weights import INCEPTION_SCRIPT, STAND_IN_MARKER, WEIGHT_FILES, Located, WeightFile, find, locate
from dmqbench.store import downloads

CONTENT = bytes(range(256)) * 8192
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SETTINGS = MetricsConfig(names=("fid",), pairs=1, samples=1)


def weight_file(url: str = "http://localhost:9/none.pth") -> WeightFile:
    return WeightFile("net-12345678.pth", DIGEST, len(CONTENT), url, ("fid",), aliases=("same-12345678.pth",))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty torch cache, with downloads allowed as far as the environment is concerned."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "_failures", {})
    return tmp_path / "torch" / "hub" / "checkpoints"


class Server:
    """Serves ``answers`` on the loopback interface; counts the requests."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/net.pth"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()


class SilentServer:
    """Takes connections, says ``first``, and then nothing more."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.connections: list[socket.socket] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/net.pth"

    def __enter__(self) -> "SilentServer":
        threading.Thread(target=self._take, daemon=True).start()
        return self

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            self.connections.append(connection)
            connection.sendall(self.first)

    def __exit__(self, *_) -> None:
        for held in (self.listening, *self.connections):
            held.close()


def refusal(file: WeightFile, settings: MetricsConfig = SETTINGS) -> str:
    with pytest.raises(MetricUnavailable) as error:
        locate(file, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_table_names_what_the_libraries_would_download():
    import cleanfid.downloads_helper
    import cleanfid.inception_pytorch
    import torch_fidelity.feature_extractor_inceptionv3
    import torchvision.models as models

    assert cleanfid.downloads_helper.inception_url == INCEPTION_SCRIPT.url
    assert weights.INCEPTION_STATE.url == torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3
    assert cleanfid.inception_pytorch.FID_WEIGHTS_URL.rpartition("/")[2] in weights.INCEPTION_STATE.aliases
    classifiers = {"alex": models.AlexNet_Weights, "vgg": models.VGG16_Weights, "squeeze": models.SqueezeNet1_1_Weights}
    assert {*classifiers} == {*weights.LPIPS_BACKBONE_FILES} == {*LPIPS_BACKBONES}
    for name, published in classifiers.items():
        file = weights.LPIPS_BACKBONE_FILES[name]
        assert file.url == published.DEFAULT.url
        assert file.size_bytes / 2**20 == pytest.approx(published.DEFAULT.meta["_file_size"], abs=1e-3)


def test_names_from_torch_hub_begin_with_the_digest():
    hashed = [(file, name) for file in WEIGHT_FILES for name in file.names if name.endswith(".pth")]
    assert len(hashed) == 5
    for file, name in hashed:
        assert re.search(r"-([0-9a-f]{8})\.pth$", name)[1] == file.sha256[:8]


def test_every_file_is_of_known_metrics_and_every_inception_has_one():
    assert {metric for file in WEIGHT_FILES for metric in file.metrics} <= {*OWN_METRICS}
    assert {weights.inception_file(protocol) for protocol in INCEPTIONS} == {*WEIGHT_FILES[:2]}
    assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in WEIGHT_FILES)


def test_the_named_folder_comes_before_the_cache(home, tmp_path):
    file = weight_file()
    assert find(file, SETTINGS) is None
    for folder in (home, tmp_path / "mine"):
        folder.mkdir(parents=True)
        (folder / file.name).write_bytes(CONTENT)
    assert locate(file, SETTINGS) == Located(home / file.name, DIGEST)
    mine = replace(SETTINGS, weights=str(tmp_path / "mine"))
    assert locate(file, mine).path == tmp_path / "mine" / file.name


def test_the_same_bytes_under_another_published_name_will_do(home):
    home.mkdir(parents=True)
    (home / "same-12345678.pth").write_bytes(CONTENT)
    assert locate(weight_file(), SETTINGS).path.name == "same-12345678.pth"


def test_clean_fids_own_place_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    path = tmp_path / "tmp" / INCEPTION_SCRIPT.name
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert str(path) in refusal(INCEPTION_SCRIPT)  # found there, and not the real file


def test_another_file_under_that_name_is_refused(home):
    home.mkdir(parents=True)
    (home / weight_file().name).write_bytes(CONTENT + b"!")
    message = refusal(weight_file())
    assert "is not the published file" in message
    assert DIGEST[:8] in message


def test_a_stand_in_needs_its_marker_and_its_folder(home, tmp_path):
    file, folder = weight_file(), tmp_path / "made-up"
    folder.mkdir()
    (folder / file.name).write_bytes(b"made up")
    settings = replace(SETTINGS, weights=str(folder))
    assert "is not the published file" in refusal(file, settings)
    (folder / STAND_IN_MARKER).touch()
    found = locate(file, settings)
    assert (found.stand_in, found.sha256) == (True, hashlib.sha256(b"made up").hexdigest())
    (folder / file.name).unlink()
    home.mkdir(parents=True)
    (home / file.name).write_bytes(CONTENT)
    assert not locate(file, settings).stand_in


def test_a_file_is_hashed_once_unless_it_changes(home, monkeypatch):
    home.mkdir(parents=True)
    path = home / weight_file().name
    path.write_bytes(CONTENT)
    hashed = []
    monkeypatch.setattr(weights, "sha256_file", lambda path: hashed.append(path) or DIGEST)
    for _ in range(3):
        locate(weight_file(), SETTINGS)
    path.write_bytes(CONTENT + b"more")
    locate(weight_file(), SETTINGS)
    assert hashed == [path, path]


def test_a_download_is_checked_kept_and_not_repeated(home, capsys):
    with Server(CONTENT) as server:
        for _ in range(2):
            assert locate(weight_file(server.url), SETTINGS) == Located(home / "net-12345678.pth", DIGEST)
        assert server.requests == 1
    assert [path.name for path in home.iterdir()] == ["net-12345678.pth"]
    assert "net-12345678.pth (MiB): 2 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [(CONTENT[:-1], 200, "serves 2097151 bytes of sha256"), (b"", 404, "404")],
    ids=["content", "404"],
)
def test_what_is_not_the_file_gets_no_name(home, body, status, said):
    with Server(body, status) as server:
        message = refusal(weight_file(server.url))
    assert said in message
    assert list(home.iterdir()) == []


def test_more_than_any_of_these_files_is_cut_off(home, monkeypatch):
    monkeypatch.setattr(downloads, "_MAX_BYTES", 2**20)
    with Server(CONTENT) as server:
        assert "serves more than 1 MiB" in refusal(weight_file(server.url))
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"], ids=["at once", "midway"])
def test_a_silent_server_is_given_up_and_not_asked_again(home, monkeypatch, first):
    monkeypatch.setattr(downloads, "SILENCE_S", 0.2)
    with SilentServer(first) as server:
        for _ in range(3):
            assert "no answer within 0.2 s" in refusal(weight_file(server.url))
        assert len(server.connections) == 1
    assert list(home.iterdir()) == []


def test_a_silent_proxy_is_given_up(monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE_S", 0.2)
    monkeypatch.setattr("urllib.request._opener", None)  # it has read the environment once
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with SilentServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert "no answer within 0.2 s" in refusal(weight_file("http://weights.invalid/net.pth"))
        assert len(proxy.connections) == 1


def test_any_answer_is_an_answer(monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE_S", 0.2)
    with Server(b"", 200) as server, Server(b"", 401) as refusing, SilentServer() as silent:
        assert [downloads.unanswered(each.url) for each in (server, refusing)] == [None, None]
        assert downloads.unanswered(silent.url) == "no answer within 0.2 s"


@pytest.mark.parametrize("why", ["HF_HUB_OFFLINE is set", "metrics.download=false"])
def test_a_forbidden_download_is_not_tried_and_says_what_to_do(home, tmp_path, monkeypatch, why):
    if why.startswith("HF"):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = replace(SETTINGS, download=not why.startswith("metrics"), weights=str(tmp_path))
    with Server(CONTENT) as server:
        message = refusal(weight_file(server.url), settings)
        assert server.requests == 0
        for part in (why, "net-12345678.pth (2 MB)", str(tmp_path), str(home), server.url, "metrics.weights"):
            assert part in message
