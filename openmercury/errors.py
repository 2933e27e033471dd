"""Every error a user can meet. A message is one sentence that ends in the remedy; the command line prints
it and exits 1.

OpenMercuryError
├── ConfigError            a recipe or an override is wrong
├── CheckpointError        a folder of weights is missing, cut or inconsistent
│   └── UnsupportedError   it is whole, but of a kind this version does not run
├── InputError             a prompt cannot be answered as given
│   ├── EmptyPromptError
│   └── ContextOverflowError
├── DataError              training or evaluation data is missing or broken
├── TrainingError          a run cannot go on (NaN loss, mismatched resume)
├── ServerError            a server that was asked for answers is gone, or refuses us
├── SandboxError           generated code cannot be run safely here
├── DeviceMemoryError      the engine's memory does not fit on the device
├── QueueFullError         the engine has as many waiting requests as it may
├── RequestFailedError     one request could not be finished; those beside it go on
└── EngineStoppedError     the engine was closed or broke down
"""


class OpenMercuryError(Exception):
    """Base of all errors raised on purpose; anything else is a bug of ours."""


class ConfigError(OpenMercuryError):
    """A recipe, an override or a parameter is wrong."""


class CheckpointError(OpenMercuryError):
    """A checkpoint folder is missing, cut or inconsistent."""


class UnsupportedError(CheckpointError):
    """The checkpoint is whole, but of a kind this version does not run."""


class InputError(OpenMercuryError):
    """A prompt cannot be answered as given."""


class EmptyPromptError(InputError):
    """The prompt has no tokens."""


class ContextOverflowError(InputError):
    """Prompt and answer together are longer than the context."""


class DataError(OpenMercuryError):
    """Training or evaluation data is missing or broken."""


class TrainingError(OpenMercuryError):
    """A training run cannot go on."""


class ServerError(OpenMercuryError):
    """A server that was asked for answers is gone, or refuses us."""


class SandboxError(OpenMercuryError):
    """Generated code cannot be run safely on this machine."""


class DeviceMemoryError(OpenMercuryError):
    """The engine's rows and cache do not fit into the memory of the device."""


class QueueFullError(OpenMercuryError):
    """As many requests wait as may wait."""


class RequestFailedError(OpenMercuryError):
    """One request could not be finished; those beside it go on."""


class EngineStoppedError(OpenMercuryError):
    """The engine was closed, or broke down, before the request was finished."""
