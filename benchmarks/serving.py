"""How many images a second `vqgpt serve` draws for 16 clients that want one each, beside one batch of 16.

    python benchmarks/serving.py runs/digits [--clients 16] [--seconds 3] [--rounds 5]

A server of the run is started. In turn, for some seconds each: 16 clients that ask for one image after the other, each
of another seed; one client that asks for 16 at once; and, in this process, the same pair without HTTP: 16 images drawn,
decoded and written as PNG files. Medians over the rounds, and the lowest and highest. For a machine that does nothing
else.
"""

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vqgpt.api.options import SourceOptions
from vqgpt.api.run_files import Run
from vqgpt.gpt.options import SamplingOptions
from vqgpt.serve.answers import drawn_images
from vqgpt.serve.pair import Draw, Pair


def started(run: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of the run, and its host and port."""
    command = [sys.executable, "-m", "vqgpt", "serve", str(run), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"open http://([^/]+)/", line):
            return server, found[1]
    raise SystemExit("the server did not start")


def asking(place: str, seed: int, count: int, until: float) -> int:
    """How many images a client gets until a time, asking for `count` at once."""
    connection, got = http.client.HTTPConnection(place), 0
    while time.monotonic() < until:
        body = json.dumps({"num_samples": count, "seed": seed, "first": got})
        connection.request("POST", "/api/sample", body, {"content-type": "application/json"})
        got += len(json.loads(connection.getresponse().read())["images"])
    connection.close()
    return got


def without_http(pair: Pair, count: int, until: float) -> int:
    """How many images the pair makes until a time, `count` at once."""
    got = 0
    while time.monotonic() < until:
        asked = pair.generator.asked(range(got, got + count), (), 0, SamplingOptions())
        task = Draw.of(asked, pair.grid)
        got += len(drawn_images(pair, task, pair.do([task], threading.Event())[0]))
    return got


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    clients, seconds = arguments.clients, arguments.seconds
    server, place = started(arguments.run)
    pair = Pair.open(Run(folder=arguments.run, sources=SourceOptions()), "auto")
    many = f"{clients} clients, an image each"
    with ThreadPoolExecutor(clients) as threads:
        ways: dict[str, Callable[[float], int]] = {
            many: lambda until: sum(threads.map(lambda seed: asking(place, seed, 1, until), range(clients))),
            f"one client, {clients} images": lambda until: asking(place, 0, clients, until),
            f"without HTTP, {clients} images": lambda until: without_http(pair, clients, until),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(time.monotonic() + 1)  # to warm up
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                begun = time.monotonic()
                rates[name].append(way(begun + seconds) / (time.monotonic() - begun))
    server.terminate()
    server.wait()
    print("| | images/s | share of the first row |\n|---|---|---|")
    for name, found in rates.items():
        middle = statistics.median(found)
        share = statistics.median(of_clients / own for of_clients, own in zip(rates[many], found, strict=True))
        print(f"| {name} | {middle:.0f} ({min(found):.0f} to {max(found):.0f}) | {share:.2f} |")


if __name__ == "__main__":
    main()
