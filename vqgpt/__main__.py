"""`python -m vqgpt`."""

from vqgpt.cli.app import main

if __name__ == "__main__":
    main()
