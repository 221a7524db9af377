"""Settings of the server."""

from dataclasses import dataclass, field

from hf_reward.scoring.server_token import is_usable_token


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of the server: address, model, limits and token."""

    host: str = "127.0.0.1"
    """Address to listen on; "0.0.0.0" for all networks."""
    workers: int = 1
    """Processes that serve the port, each with a copy of the models and, if there are several, a GPU of its own."""
    port: int = 8000
    """0 selects a free port and logs it."""
    served_model_name: str | None = None
    """Model name in answers and in `/classify`; by default the Hub id or the name of the folder."""
    device: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False
    """Run Python code from the model's folder."""
    length_correction: bool = False
    """Subtract the length curve that is stored with the model."""
    allow_pickle: bool = False
    """Load weights from pickle files, tensors only."""
    max_length: int | None = None
    """Maximum length in tokens; by default that of the checkpoint."""
    batch_tokens: int | None = None
    """Tokens in a batch; by default 4,096 on a CPU and 32,768 elsewhere."""
    max_queue_tokens: int = 1_048_576
    """Tokens that may wait in the queue."""
    max_queue_rows: int = 8192
    """Responses that may wait in the queue, including those that are being tokenised."""
    max_body_bytes: int = 16 * 2**20
    read_timeout_seconds: int = 30
    """Seconds for the headers of a request to arrive, and again for its body."""
    shutdown_seconds: int = 300
    """Seconds to finish accepted requests after SIGTERM or SIGINT, before connections are closed."""
    token: str | None = field(default=None, repr=False)
    """Token that clients must send as `Authorization: Bearer ...`; None disables it."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be 1 or more, but is {value}.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"`port` must be between 0 and 65535, but is {self.port}.")
        if self.token is not None and not is_usable_token(self.token):
            raise ValueError("The server's token must be printable ASCII without spaces, and not empty.")

    @property
    def is_open_to_others(self) -> bool:
        """Whether other machines can reach the server without a token."""
        return self.token is None and self.host not in ("127.0.0.1", "localhost", "::1")


_COUNTS = (
    *("workers", "max_length", "batch_tokens", "max_queue_tokens", "max_queue_rows", "max_body_bytes"),
    *("read_timeout_seconds", "shutdown_seconds"),
)
