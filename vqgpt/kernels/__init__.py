"""C code of ours, how it is built, and the plain-torch equal of each. Knows no network."""
