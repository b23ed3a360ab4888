"""The command line: each command parses, calls the library and renders. Imports stay light until a command runs."""
