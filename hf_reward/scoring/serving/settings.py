"""What a server can be told: where to listen, how much to hold, who may ask."""

from dataclasses import dataclass, field

from hf_reward.scoring.server_token import is_usable_token


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server."""

    host: str = "127.0.0.1"
    """Address to listen at; "0.0.0.0" for every network."""
    port: int = 8000
    """0 takes a free one and says which."""
    served_model_name: str | None = None
    """The name that answers carry and that `/classify` asks for; by default its Hub id or the name of its folder."""
    device: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False
    """Whether code that the model's folder brings may run."""
    length_correction: bool = False
    """Whether rewards are corrected for length as the model's record says."""
    allow_pickle: bool = False
    """Read weights that are pickles, tensors only."""
    max_length: int | None = None
    """Another limit than the checkpoint's."""
    batch_tokens: int | None = None
    """Tokens computed together; by default what the scorer finds right for the device."""
    max_queue_tokens: int = 1_048_576
    """Tokens that may wait for the model."""
    max_queue_rows: int = 8192
    """Responses that may wait for the model, those included that are being tokenised."""
    max_body_bytes: int = 16 * 2**20
    read_timeout_seconds: int = 30
    """How long the headers of a request may take to arrive, and again its body."""
    shutdown_seconds: int = 300
    """How long to finish what was accepted after SIGTERM or SIGINT, before connections are cut."""
    token: str | None = field(default=None, repr=False)
    """What clients must send as `Authorization: Bearer ...`; None asks for nothing."""

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
        """Whether other machines can reach the server and need no token."""
        return self.token is None and self.host not in ("127.0.0.1", "localhost", "::1")


_COUNTS = (
    *("max_length", "batch_tokens", "max_queue_tokens", "max_queue_rows", "max_body_bytes"),
    *("read_timeout_seconds", "shutdown_seconds"),
)
