"""The chat, on a terminal or line by line from a pipe."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edgerun.cli.chat import Chat
from edgerun.cli.chat_commands import obey
from edgerun.cli.chat_input import Messages, Reader
from edgerun.cli.interrupt import cancelled_by_ctrl_c
from edgerun.cli.output import ReplyPrinter, note
from edgerun.cli.progress import ProgressBars
from edgerun.cli.saved_chat import chat_path
from edgerun.errors import EdgerunError


def talk(chat: Chat, bars: ProgressBars, kept: Path | None = None, piped: Messages | None = None) -> bool:
    """Read, reply and obey until the user leaves; then the chat is saved as `kept`, if that is given. piped: where
    messages come from, if not from the terminal. Returns whether nothing went wrong.

    What goes wrong in a command or a reply is said, and the chat goes on; only a signal or a terminal that is gone ends
    it, and what was said until then is kept in a file."""
    if piped is None:
        what = "chat" if chat.chats else "this model has no chat template: it continues what you write"
        note(f"{chat.name}: {what}. /help lists the commands, Ctrl-D leaves.")
    reader = Reader() if piped is None else piped
    chat.confirms = reader.confirm
    try:
        went_well = _converse(chat, reader, bars)
        if kept is not None:
            chat.save(kept)
        return went_well
    except BaseException:
        _rescue(chat, kept)
        raise


def _converse(chat: Chat, reader: Messages, bars: ProgressBars) -> bool:
    went_well = True
    while not chat.leaving:
        try:
            text = reader.read()
        except EOFError:
            break
        except KeyboardInterrupt:
            note("(Ctrl-D or /bye leaves)")
            continue
        if text.strip():
            went_well = attend(chat, text, bars) and went_well
    return went_well


def attend(chat: Chat, text: str, bars: ProgressBars) -> bool:
    """Do what a line of the user says; whether it went well. This is the one place where errors of commands and replies
    end; that nobody reads any more (BrokenPipeError) is not one of them."""
    try:
        again = obey(chat, text) if text.startswith("/") else text
        if again is not None:
            speak(chat, again, bars)
        return True
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        note("(interrupted)")
    except (EdgerunError, OSError) as error:
        note(f"edgerun: {error}")
    except MemoryError as error:
        note(f"edgerun: {error or 'out of memory'}")
    return False


def _rescue(chat: Chat, kept: Path | None) -> None:
    """Keep a chat that something else than its user ends (a signal, a terminal that is gone, a fault of ours)."""
    if not chat.messages:
        return
    with contextlib.suppress(EdgerunError, OSError):  # the error that ends the chat is the one to hear about
        chat.save_text(kept or chat_path("interrupted"))
        note("the chat was kept" if kept else "the chat was kept; /load interrupted goes on with it")


def speak(chat: Chat, text: str, bars: ProgressBars) -> None:
    """Print the reply as it comes; Ctrl-C ends it and keeps what came."""
    printer, meter = ReplyPrinter(), chat.meter()
    with cancelled_by_ctrl_c() as cancel:
        bars.waiting("reading")
        try:
            for chunk in chat.reply(text, cancel):
                bars.arrived()
                meter.arrived()
                printer.print(chunk)
                if chunk.completion is not None:
                    chat.last, chat.measures = chunk.completion, meter.measures(chunk.completion)
        finally:
            bars.arrived()
        printer.end()
    if chat.last is not None and chat.last.finish_reason == "cancelled":
        note("(stopped)")
    elif chat.last is not None and chat.last.finish_reason == "length":
        note("(the reply is as long as it may be)")
    if chat.left and not chat.told:
        chat.told = True
        note("(the chat has outgrown the context: from here on the model forgets its oldest turns; /save keeps them)")
    if chat.stats and chat.last is not None:
        note(chat.last_stats())
