"""The emoji of docs/results.md, of 64 pixels, in class folders, from the npm package emoji-datasource-google.

    npm pack emoji-datasource-google@16.0.0
    python benchmarks/emoji_images.py emoji-datasource-google-16.0.0.tgz emoji

They are Noto Emoji, under the Apache licence 2.0. In the order of names, every tenth of a class goes to
emoji/test/CLASS, the others to emoji/train/CLASS.
"""

import argparse
import json
import tarfile
from collections import defaultdict
from pathlib import Path

TENTH = 10


def class_of_each_file(package: tarfile.TarFile) -> dict[str, str]:
    """By the name of an emoji's file, and of those of its skin tones."""
    listing = package.extractfile("package/emoji.json")
    assert listing is not None
    found = {}
    for emoji in json.load(listing):
        for image in (emoji, *emoji.get("skin_variations", {}).values()):
            found[image["image"]] = emoji["category"].replace("&", "and")
    return found


def main() -> None:
    """Write the class folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with tarfile.open(arguments.package) as package:
        classes = class_of_each_file(package)
        pictures: dict[str, dict[str, bytes]] = defaultdict(dict)
        for member in package:
            name = Path(member.name).name
            if member.name == f"package/img/google/64/{name}" and (content := package.extractfile(member)):
                pictures[classes[name]][name] = content.read()
    for name, of_class in pictures.items():
        for number, file in enumerate(sorted(of_class), start=1):
            folder = arguments.folder / ("test" if number % TENTH == 0 else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(of_class[file])


if __name__ == "__main__":
    main()
