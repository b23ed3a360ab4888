"""The command line: each command parses, calls the library and renders; imports stay light until one runs."""
