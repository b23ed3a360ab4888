"""Replies taken apart: reasoning, the answer, calls of functions."""

from edgerun.text.replies.formats import ReplyFormat, find_reply_format
from edgerun.text.replies.parts import Part, ReplyReader, Tools, known_tools

__all__ = ["Part", "ReplyFormat", "ReplyReader", "Tools", "find_reply_format", "known_tools"]
