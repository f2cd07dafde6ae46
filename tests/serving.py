"""A real server of a run, in a process of its own, for tests that ask it things."""

import os
import re
import signal
import subprocess
import sys
import threading

import httpx


class Server:
    """`vqgpt serve` in a folder, on a free port; what it says is kept."""

    def __init__(self, folder, *words):
        command = [sys.executable, "-m", "vqgpt", "serve", "runs/digits", "--port", "0", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)
        self.said = []
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.ready.wait(120), self.said
        address = re.search(r"open (http://\S+)", "".join(self.said))
        assert address, self.said
        self.address = address[1]
        self.url, _, self.query = self.address.partition("/?")
        self.url = self.url.rstrip("/")

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)
            if "open http" in line:
                self.ready.set()
        self.ready.set()

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, **options)

    @property
    def memory_kibibytes(self):
        words = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    def stop(self, number=signal.SIGTERM):
        """The exit code after a signal."""
        self.process.send_signal(number)
        code = self.process.wait(120)
        self.reader.join(10)
        self.process.stderr.close()
        return code
