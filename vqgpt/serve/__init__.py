"""A trained pair as a page to play with, and as JSON over HTTP: `vqgpt serve`. Needs the extra `serve`."""
