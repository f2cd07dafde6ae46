"""`vqgpt serve` over HTTP, by a real server in a process of its own: what it answers, refuses, and survives."""

import base64
import http.client
import io
import itertools
import json
import random
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqgpt
from tests.conftest import TINY_GPT, run_here
from tests.serving import Server
from vqgpt.data.images import prepare
from vqgpt.data.options import Preprocessing, PreprocessingOptions


@pytest.fixture(scope="module")
def server(copied_pipeline):
    server = Server(copied_pipeline, "--max-images", "32", "--max-waiting", "200")
    yield server
    assert server.stop() == 0, server.said
    assert not any("Traceback" in line or "never retrieved" in line for line in server.said), server.said


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def gpt(copied_pipeline):
    return vqgpt.load_gpt(copied_pipeline / "runs/digits/gpt.pt")


@pytest.fixture(scope="module")
def tokenizer(copied_pipeline):
    return vqgpt.load_vqgan(copied_pipeline / "runs/digits/vqgan.pt")


@pytest.fixture(scope="module")
def cache(copied_pipeline):
    return vqgpt.TokenCache(copied_pipeline / "cache/digits.zarr")


def answer(client, path, **body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def codes_of(images):
    return np.array([image["codes"] for image in images])


def pixels_of(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"]))))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def lines_of(client, path, **body):
    with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        return [json.loads(line) for line in response.iter_lines()]


def test_facts_say_what_is_served(client, cache):
    facts = client.get("/api/facts").json()
    assert facts["classes"] == [str(number) for number in range(10)]
    assert facts["grid"] == [8, 8]
    assert facts["rows"] == {name: cache.rows(name) for name in cache.split_names}
    assert facts["limits"]["images"] == 32


def test_images_are_those_of_vqgpt_sample(client, copied_pipeline, tokenizer):
    sampled = vqgpt.TokenCache(copied_pipeline / "runs/digits/samples.zarr").read_split("samples")
    images = answer(client, "/api/sample", num_samples=20)["images"]
    assert np.array_equal(codes_of(images), sampled.codes[:, 0])
    assert [image["classes"] for image in images] == [[str(label)] for label in sampled.labels]
    assert [image["number"] for image in images] == list(range(20))
    assert np.array_equal(np.stack([pixels_of(image) for image in images]), tokenizer.decode(sampled.codes[:, 0])[:, 0])


def test_an_image_is_the_same_whoever_else_asks(client, gpt):
    """Each of several clients asks for other images of other seeds, at other temperatures, at the same time."""
    asked = [
        {"seed": seed, "first": first, "num_samples": 3, "temperature": temperature, "cfg_scale": scale}
        for seed, first, (temperature, scale) in itertools.product(
            (0, 7), (0, 5), ((1.0, 1.0), (0.5, 1.0), (0.0, 2.0), (1.3, 0.5))
        )
    ]
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = list(threads.map(lambda body: answer(client, "/api/sample", **body)["images"], asked))
    for body, images in zip(asked, answers, strict=True):
        settings = {name: body[name] for name in ("temperature", "cfg_scale")}
        expected = gpt.sample(num_samples=body["first"] + 3, seed=body["seed"], **settings)
        assert np.array_equal(codes_of(images), expected[body["first"] :])


def test_a_stream_shows_codes_as_they_are_drawn_and_then_the_same_images(client):
    body = {"num_samples": 32, "seed": 3, "classes": ["3", 4]}
    events = lines_of(client, "/api/sample/stream", **body)
    images = [event["image"] for event in events if event["event"] == "image"]
    assert images == answer(client, "/api/sample", **body)["images"]
    final = codes_of(images)
    for event in events:
        if event["event"] == "progress":
            so_far = np.array(event["codes"])
            assert event["drawn"] == (so_far >= 0).sum()
            assert ((so_far == final) | (so_far == -1)).all()


def test_completions_keep_what_is_known_and_say_what_they_do_not_see(client, cache):
    codes = cache.read_split("test").codes[0, 0].astype(int)
    known = codes.copy()
    known[4:] = -1
    done = answer(client, "/api/complete", known=known.tolist(), num_samples=4, classes=["3"])
    assert (codes_of(done["images"])[:, :4] == codes[:4]).all()
    assert done["notices"] == []
    known = np.where(np.arange(8)[:, None] == 0, -1, codes)  # the first row is drawn, by a GPT that reads on from it
    done = answer(client, "/api/complete", known=known.tolist(), num_samples=2)
    assert (codes_of(done["images"])[:, 1:] == codes[1:]).all()
    assert "none after it" in done["notices"][0]
    events = lines_of(client, "/api/complete/stream", known=known.tolist(), num_samples=2)
    assert [event["image"] for event in events if event["event"] == "image"] == done["images"]
    assert [event["text"] for event in events if event["event"] == "notice"] == done["notices"]


def test_scores_are_those_of_the_gpt(client, gpt, cache):
    tokens = cache.read_split("test")
    codes, labels = tokens.codes[:5, 0], tokens.labels[:5].astype(np.int64)
    scores = answer(client, "/api/score", codes=codes.tolist(), classes=labels.tolist())
    assert scores["bits_per_token"] == pytest.approx(gpt.score(codes, labels), rel=1e-5)
    assert np.mean(scores["bits"], axis=(1, 2)) == pytest.approx(scores["bits_per_token"])
    drawn = answer(client, "/api/sample", num_samples=3, classes=["3"])["images"]
    scores = answer(client, "/api/score", codes=codes_of(drawn).tolist(), classes=["3"])
    assert scores["bits_per_token"] == pytest.approx([image["bits_per_token"] for image in drawn], rel=1e-4)


def test_images_are_encoded_as_those_of_the_training(client, tokenizer):
    grey, colour = (
        Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)) for shape in ((16, 16), (40, 60, 3))
    )
    images = answer(client, "/api/encode", images=[png(grey), "data:image/png;base64," + png(colour)])["images"]
    preprocessing = Preprocessing(size=16, channels=1, options=PreprocessingOptions())
    expected = tokenizer.encode(np.concatenate([prepare(image, preprocessing) for image in (grey, colour)]))
    assert np.array_equal(codes_of(images), expected)
    assert np.array_equal(pixels_of(images[1]), tokenizer.decode(expected)[1, 0])
    decoded = answer(client, "/api/decode", codes=expected.tolist())["images"]
    assert decoded == images


def test_a_row_of_the_cache_is_its_own_nearest_row(client, cache):
    tokens = cache.read_split("train")
    image = client.get("/api/rows/train/17").json()
    assert image["codes"] == tokens.codes[17, 0].tolist()
    assert image["classes"] == [str(tokens.labels[17])]
    nearest = answer(client, "/api/nearest", codes=image["codes"])
    assert nearest["differing_tokens"] == 0
    assert np.array_equal(tokens.codes[nearest["row"], 0], image["codes"])
    assert nearest["image"]["codes"] == image["codes"]
    changed = [
        [(code + 1) % 16 if (y, x) == (0, 0) else code for x, code in enumerate(row)]
        for y, row in enumerate(image["codes"])
    ]
    assert answer(client, "/api/nearest", codes=changed)["differing_tokens"] == 1


def test_the_palette_has_the_colour_of_each_code(client):
    colours = client.get("/api/palette").json()["colours"]
    assert len(colours) == 16
    assert all(colour[0] == "#" and colour[1:3] == colour[3:5] == colour[5:7] for colour in colours)  # grey images


GRID = [[0] * 8] * 8
BAD = [
    ("/api/sample", {"num_samples": 33}, 422),
    ("/api/sample", {"num_samples": 0}, 422),
    ("/api/sample", {"num_samples": "1"}, 422),
    ("/api/sample", {"num_samples": 1.5}, 422),
    ("/api/sample", {"seed": -1}, 422),
    ("/api/sample", {"seed": 2**64}, 422),
    ("/api/sample", {"temperature": "hot"}, 422),
    ("/api/sample", {"temperature": -1}, 422),
    ("/api/sample", {"top_p": 0}, 422),
    ("/api/sample", {"temprature": 1}, 422),
    ("/api/sample", {"classes": ["seven"]}, 409),
    ("/api/sample", {"classes": [10]}, 409),
    ("/api/sample", {"classes": ["\ud800"]}, 422),
    ("/api/sample", {"classes": [True]}, 422),
    ("/api/sample", {"draw_order": "random"}, 409),
    ("/api/sample", {"draw_order": "zigzag"}, 422),
    ("/api/sample", {"cfg_power": 2}, 409),
    ("/api/sample", [], 422),
    ("/api/complete", {}, 422),
    ("/api/complete", {"known": [[0, 0]]}, 422),
    ("/api/complete", {"known": []}, 422),
    ("/api/complete", {"known": [[16] * 8] * 8}, 409),
    ("/api/complete", {"known": [[-2] * 8] * 8}, 422),
    ("/api/decode", {"codes": []}, 422),
    ("/api/decode", {"codes": [GRID] * 65}, 422),
    ("/api/decode", {"codes": [[[16] * 8] * 8]}, 422),
    ("/api/decode", {"codes": [[[-1] * 8] * 8]}, 422),
    ("/api/score", {"codes": [GRID], "classes": ["all of them"]}, 409),
    ("/api/nearest", {"codes": [[None] * 8] * 8}, 422),
    ("/api/encode", {"images": []}, 422),
    ("/api/decode", {"codes": [GRID] * 33}, 422),
    ("/api/decode", {"codes": [[[""] * 300_000]]}, 422),
    ("/api/encode", {"images": ["no base64!"]}, 422),
    ("/api/encode", {"images": [base64.b64encode(b"no image").decode()]}, 422),
    ("/api/encode", {"images": [png(Image.new("1", (5000, 5000)))]}, 422),
    ("/api/encode", {"images": [png(Image.new("1", (3000, 3000)))] * 2}, 422),
    ("/api/encode", {"images": [png(Image.new("L", (9, 9)))[:60]]}, 422),
]


@pytest.mark.parametrize(("path", "body", "status"), BAD)
def test_bad_requests_are_refused_with_words(client, path, body, status):
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "hint"}
    assert all(response.json().values())


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/api/rows/train/99999", {}, 404),
        ("GET", "/api/rows/nowhere/0", {}, 404),
        ("GET", "/api/rows/train/-1", {}, 422),
        ("GET", "/page/../guards.py", {}, 404),
        ("GET", "/page/%2e%2e%2fguards.py", {}, 404),
        ("GET", "/swagger/../../setup.py", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("GET", "/api/sample", {}, 405),
        ("POST", "/api/facts", {"json": {}}, 405),
        ("POST", "/api/sample", {"content": b"{}"}, 415),
        ("POST", "/api/sample", {"data": {"seed": 1}}, 415),
        ("POST", "/api/sample", {"content": b"{", "headers": {"content-type": "application/json"}}, 422),
        ("POST", "/api/sample", {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400),
        ("POST", "/api/sample", {"content": b'{"seed":NaN}', "headers": {"content-type": "application/json"}}, 422),
        ("POST", "/api/sample", {"content": b" " * (2**22 + 1), "headers": {"content-type": "application/json"}}, 413),
        ("GET", "/", {"headers": {"host": "evil.example"}}, 403),
        ("GET", "/api/facts", {"headers": {"host": "127.0.0.1.evil.example:80"}}, 403),
        ("GET", "/api/facts", {"headers": {"host": "["}}, 403),
        ("POST", "/api/sample", {"json": {}, "headers": {"origin": "http://evil.example"}}, 403),
        ("POST", "/api/sample", {"json": {}, "headers": {"origin": "null"}}, 403),
        ("POST", "/api/sample", {"json": {}, "headers": {"origin": "http://127.0.0.1:1"}}, 403),
        ("GET", "/api/palette", {"headers": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}}, 403),
    ],
)
def test_what_is_not_there_or_comes_from_elsewhere_is_refused(client, method, path, options, status):
    response = client.request(method, path, **options)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "hint"}


def test_a_body_without_a_length_is_cut_off(client):
    def endless():
        for _ in range(100):
            yield b" " * 2**16

    response = client.post("/api/sample", content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_the_page_and_the_description_need_nothing_from_elsewhere(client):
    for path in ("/", "/docs", "/page/main.js", "/page/theme.css", "/swagger/swagger-ui-bundle.js"):
        response = client.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        if path in ("/", "/docs"):
            assert "https://" not in response.text
    own = {"origin": str(client.base_url).rstrip("/")}
    assert client.post("/api/sample", json={"num_samples": 1}, headers=own).status_code == 200
    assert client.get("/api/facts", headers={"host": "localhost:1"}).status_code == 200  # as through a tunnel


def test_ten_thousand_bad_requests_leave_the_server_as_it_was(server, client):
    """Bodies that are cut, changed or of the wrong kind, over connections that are kept, without a 5xx."""
    good = json.dumps({"known": GRID, "num_samples": 2, "classes": ["3"], "temperature": 0.7}).encode()
    paths = [
        f"/api/{name}" for name in ("sample", "complete", "complete/stream", "encode", "decode", "score", "nearest")
    ]
    before = answer(client, "/api/sample", num_samples=4)

    def one_client(number, requests):
        chance = random.Random(number)
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        statuses = set()
        for _ in range(requests):
            body = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                body[chance.randrange(len(body))] = chance.choice(b'"{}[]:,x\x00\xff-9e')
            body = bytes(body[: chance.randint(0, len(body))])
            headers = {"content-type": "application/json"} if chance.random() < 0.9 else {}
            connection.request("POST", chance.choice(paths), body, headers)
            response = connection.getresponse()
            response.read()
            statuses.add(response.status)
        connection.close()
        return statuses

    one_client(0, 1000)
    settled = server.memory_kibibytes
    with ThreadPoolExecutor(3) as threads:
        statuses = set[int]().union(*threads.map(one_client, (1, 2, 3), (3000, 3000, 3000)))
    assert max(statuses) < 500
    assert statuses & {400, 422}
    assert server.memory_kibibytes < settled + 30_000
    assert answer(client, "/api/sample", num_samples=4) == before


@pytest.mark.parametrize(
    "chosen",
    [
        ["--exclude-path", "/api/encode"],
        # a description cannot say what is an image file
        ["--include-path", "/api/encode", "--exclude-checks", "positive_data_acceptance"],
    ],
)
def test_answers_are_as_described(server, tmp_path, chosen):
    """What schemathesis makes of the description, as described and otherwise."""
    program = shutil.which("schemathesis", path=Path(sys.executable).parent)
    words = [
        "--max-examples",
        "15",
        "--generation-deterministic",
        "--suppress-health-check",
        "all",
        "--no-color",
        *chosen,
    ]
    command = [program, "run", f"{server.url}/openapi.json", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_clients_that_leave_are_not_waited_for(server, client):
    """Some leave before their images are begun, some while they are drawn, some in the middle of a stream."""
    address = client.base_url.host, client.base_url.port
    body = json.dumps({"num_samples": 32, "temperature": 0.9}).encode()
    sockets = []
    for number in range(12):
        path = "/api/sample/stream" if number % 2 else "/api/sample"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        sockets.append(socket.create_connection(address))
        sockets[-1].sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    sockets[1].recv(100)
    for each in sockets:
        each.close()
    assert len(answer(client, "/api/sample", num_samples=1)["images"]) == 1


def test_a_gpt_of_any_order_sees_every_mask(pipeline):
    assert run_here("train", *TINY_GPT, "--order", "random", "--condition", "none", "--overwrite").code == 0
    server = Server(pipeline)
    with server.client() as client:
        assert client.get("/api/facts").json()["any_order"]
        known = np.full((8, 8), 3)
        known[2:4, 2:4] = -1
        done = answer(client, "/api/complete", known=known.tolist(), num_samples=2, draw_order="spiral")
        assert done["notices"] == []
        drawn = answer(client, "/api/sample", num_samples=2, draw_order="random", seed=5)["images"]
        assert client.post("/api/sample", json={"cfg_scale": 2}).status_code == 409  # it knows no classes
    expected = vqgpt.load_gpt("runs/digits/gpt.pt").sample(2, draw_order="random", seed=5)
    assert np.array_equal(codes_of(drawn), expected)
    assert server.stop() == 0
