"""The one error tree. Every message says what was needed, what there was, and what to do.

EdgerunError
├── UsageError            an option or argument makes no sense            (exit 2)
├── NotFoundError         a model, file or alias does not exist           (exit 3)
├── DoesNotFitError       memory or context is too small for the request  (exit 4)
│   └── ContextLengthError    a prompt is longer than the context
├── BusyError             more calls wait for the model than may
├── NetworkError          a hub or a device cannot be reached or refuses  (exit 5)
│   └── LostPeerError         another device of the group went away
├── FormatError           a file is malformed, truncated or hostile
│   └── UnsupportedError      well-formed, but a kind that edgerun does not run
├── ReadError             weights cannot be read back from the disk while running
│   └── DeviceError           what computes prompts failed while it ran
├── UntrustedError        a file or folder of the cache that another user may have written
├── TemplateError         a chat template cannot be compiled or rendered
└── Cancelled             the caller asked to stop                        (exit 130)
"""


class EdgerunError(Exception):
    """Base of every error that edgerun raises on purpose."""

    exit_code = 1


class UsageError(EdgerunError, ValueError):
    """An option or argument makes no sense."""

    exit_code = 2


class NotFoundError(EdgerunError, FileNotFoundError):
    """A model, file or alias does not exist."""

    exit_code = 3

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DoesNotFitError(EdgerunError, MemoryError):
    """Memory or context is too small for what was asked."""

    exit_code = 4


class ContextLengthError(DoesNotFitError):
    """A prompt (with what is already cached) is longer than the context."""


class BusyError(EdgerunError):
    """More calls wait for the model than may: ask again later."""


class NetworkError(EdgerunError, ConnectionError):
    """A hub or another device cannot be reached, or refuses."""

    exit_code = 5


class LostPeerError(NetworkError):
    """Another device of the group went away, or has not answered in time."""


class PutOutError(LostPeerError):
    """Another device does not take this one for a member any more: it was put out there."""


class PagesLostError(EdgerunError):
    """The keys and values of all sequences are gone, as a device that had a part of them is: the model was divided
    anew, and goes on once they are computed again."""


class FormatError(EdgerunError, ValueError):
    """A file is malformed, truncated or hostile."""


class UnsupportedError(FormatError):
    """A well-formed file of a kind that edgerun does not run."""


class ReadError(EdgerunError, OSError):
    """Weights could not be read back: a dying disk, or a file that was cut or replaced while it was in use."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DeviceError(ReadError):
    """A prompt backend's device failed while it ran."""


class UntrustedError(EdgerunError, PermissionError):
    """Somebody else may have written a file that edgerun keeps for this user: it is neither read nor replaced."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TemplateError(EdgerunError, ValueError):
    """A chat template cannot be compiled or rendered."""


class Cancelled(EdgerunError):
    """The caller asked a running generation to stop."""

    exit_code = 130
