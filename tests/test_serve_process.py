"""The process of `vqgpt serve`: where it listens and for whom, what it can take at once, and how it ends."""

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import run_here
from tests.serving import Server


def test_off_loopback_a_token_is_needed(copied_pipeline):
    server = Server(copied_pipeline, "--host", "0.0.0.0")
    token = server.query.removeprefix("token=")
    assert len(token) == 32
    port = server.url.rpartition(":")[2]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, trust_env=False) as client:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"cookie": f"vqgpt-{port}=wrong"},
            {"authorization": f"Basic {token}"},
        ):
            assert client.get("/api/facts", headers=headers).status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/api/facts", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.get(f"/?token={token}").status_code == 303
        assert client.get("/api/facts").status_code == 200  # by the cookie
        cookie = f'prefs={{"theme":"dark"}}; vqgpt-{port}={token}'  # beside those of others on this host
        assert httpx.get(f"{url}/api/facts", headers={"cookie": cookie}, trust_env=False).status_code == 200
        assert client.get("/api/facts", headers={"origin": "http://evil.example"}).status_code == 403
    assert server.stop(signal.SIGINT) == 0


def test_a_signal_lets_what_has_begun_be_done(copied_pipeline):
    server = Server(copied_pipeline)
    begun = threading.Barrier(9)

    def ask(seed):
        wanted = {"num_samples": 64, "seed": seed}
        with server.client() as client, client.stream("POST", "/api/sample/stream", json=wanted) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            begun.wait(60)
            return [json.loads(line)["event"] for line in (first, *lines)]

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, seed) for seed in range(8)]
        begun.wait(60)
        assert server.stop() == 0
        assert [each.result().count("image") for each in asked] == [64] * 8
    with pytest.raises(httpx.ConnectError), server.client() as client:
        client.get("/api/facts")
    assert "finishing" in "".join(server.said)


def test_a_second_signal_does_not_wait(copied_pipeline):
    server = Server(copied_pipeline, "--max-images", "4096", "--max-waiting", "65536")
    begun = threading.Barrier(9)

    def ask(seed):
        wanted = {"num_samples": 4096, "seed": seed}
        with server.client() as client, client.stream("POST", "/api/sample/stream", json=wanted) as lines:
            begun.wait()
            return list(lines.iter_lines())

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, seed) for seed in range(8)]
        begun.wait()
        server.process.send_signal(signal.SIGINT)
        while not any("finishing" in line for line in server.said):
            time.sleep(0.01)
        assert server.stop(signal.SIGINT) == 130, server.said
        assert any(each.exception() for each in asked)  # their images did not come


def test_too_much_at_once_is_refused_for_the_moment(copied_pipeline):
    server = Server(copied_pipeline, "--max-waiting", "70")
    with server.client(limits=httpx.Limits(max_connections=None)) as client, ThreadPoolExecutor(12) as threads:
        asked = threads.map(lambda seed: client.post("/api/sample", json={"num_samples": 64, "seed": seed}), range(12))
        answers = list(asked)
    assert {200, 429} >= {each.status_code for each in answers}
    assert all(each.headers["retry-after"] == "1" for each in answers if each.status_code == 429)
    assert [each.status_code for each in answers].count(429) >= 5
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["runs/none"], 4, "gpt.pt"),
        (["runs/digits", "--port", "70000"], 2, "port"),
        (["runs/digits", "--max-images", "0"], 2, "max_images"),
        (["runs/digits", "--max-images", "5000"], 2, "max_images"),
        (["runs/digits", "--token", "short"], 2, "at least 16"),
        (["runs/digits", "--host", "no.such.host.invalid"], 2, "cannot listen"),
    ],
)
def test_mistakes_are_told_before_it_listens(pipeline, words, code, text):
    outcome = run_here("serve", *words)
    assert outcome.code == code
    assert text in outcome.err
    assert "short" not in outcome.err


def test_a_port_that_is_taken_is_told(pipeline):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = run_here("serve", "runs/digits", "--port", str(taken.getsockname()[1]))
    assert outcome.code == 2
    assert "cannot listen" in outcome.err
