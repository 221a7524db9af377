"""Several reward heads on one backbone: K output layers, saved as their mean and in a separate file.

The output layer is linear, so the mean of K layers is again a linear layer. An ensemble acts as this mean layer (same
name, shape and file), except in the training loss and where the rewards of each head are requested.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_reward.modeling.reward_head import Float32Linear, output_layers, unwrap_model
from hf_reward.modeling.weight_safety import optional_file, refuse_non_finite, require_complete_file

logger = logging.getLogger(__name__)

HEADS_FILE = "reward_heads/heads.safetensors"
"""In a subfolder, because vLLM loads every `*.safetensors` file next to config.json as part of the model."""
START_SPREAD = 0.1
"""Standard deviation of the rewards of new heads, for hidden states with mean square 1."""
_MEAN_TOLERANCE = 1e-4


class EnsembleLinear(Float32Linear):
    """K linear layers with one output each. The output is their mean or, inside `every_head`, all K outputs.

    `add_heads` creates it from a `Float32Linear` in place. Its parameters are `head_weight` `(K, H)` and `head_bias`
    `(K,)`, if the layer has a bias. `weight`, `bias` and the state dict are those of the mean layer. Loading a state
    dict shifts all heads equally, so that their mean equals the loaded layer.
    """

    head_weight: nn.Parameter
    head_bias: nn.Parameter | None
    gives_every_head: bool

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Weight of the mean layer, shape `(1, H)`."""
        return self.head_weight.mean(0, keepdim=True)

    @property
    def bias(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bias of the mean layer, shape `(1,)`."""
        return None if self.head_bias is None else self.head_bias.mean(0, keepdim=True)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to hidden states of any dtype, shape `(..., H)` -> `(..., 1)` or `(..., K)`, float32."""
        if not self.gives_every_head:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.head_bias is None else self.head_bias.float()
            return nn.functional.linear(input.float(), self.head_weight.float(), bias)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                destination[prefix + name] = value if keep_vars else value.detach()

    def _load_from_state_dict(self, *arguments: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        state_dict, prefix, _, _, missing, _, errors = arguments  # positional in torch
        for name, values in (("weight", self.head_weight), ("bias", self.head_bias)):
            if values is None:
                continue
            loaded = state_dict.get(prefix + name)
            if loaded is None:
                missing.append(prefix + name)
            elif loaded.shape[1:] != values.shape[1:] or len(loaded) != 1:
                errors.append(f"{prefix}{name} has shape {tuple(loaded.shape)}, but the mean head has one row.")
            else:
                with torch.no_grad():
                    values.add_(loaded.to(values) - values.mean(0, keepdim=True))


def number_of_heads(model: nn.Module) -> int:
    """Return the number of reward heads: 1 unless the model is an ensemble."""
    return max((len(layer.head_weight) for layer in _ensemble_layers(model)), default=1)


def add_heads(model: nn.Module, count: int, seed: int) -> None:
    """Replace the last layer by `count` heads, in place. The rewards of the model do not change.

    The heads differ by small normal numbers with mean zero over the heads. Different initial values let the heads
    disagree on inputs that the training data do not cover (Lakshminarayanan et al. 2017).

    Args:
        model: A reward model, with or without PEFT's wrapper.
        count: Number of heads, at least 2.
        seed: Seed of these numbers. The global generators are not used.

    Raises:
        ValueError: If the model does not have exactly one last layer.
    """
    layers = output_layers(model)
    if len({_plain_name(name) for name, _ in layers}) != 1:
        raise ValueError(
            "An ensemble requires a model with one output layer, but "
            f"{type(unwrap_model(model)).__name__} has {sorted(name for name, _ in layers)}. Set `num_reward_heads=1`."
        )
    for _, layer in layers:
        _multiply(layer, count, torch.Generator().manual_seed(seed))


def _multiply(layer: nn.Linear, count: int, generator: torch.Generator) -> None:
    weight, bias = layer._parameters.pop("weight"), layer._parameters.pop("bias", None)
    assert weight is not None
    spread = torch.randn(count, weight.shape[1], generator=generator) * START_SPREAD / weight.shape[1] ** 0.5
    spread -= spread.mean(0, keepdim=True)
    rows = weight.detach().float() + spread.to(weight.device)
    layer.__class__ = EnsembleLinear
    layer.head_weight = nn.Parameter(rows, requires_grad=weight.requires_grad)  # type: ignore[assignment]
    head_bias: Any = None
    if bias is not None:
        head_bias = nn.Parameter(bias.detach().float().repeat(count), requires_grad=bias.requires_grad)
    layer.register_parameter("head_bias", head_bias)
    layer.gives_every_head = False  # type: ignore[assignment]


@contextmanager
def every_head(model: nn.Module) -> Iterator[None]:
    """Let an ensemble return logits for each head, `(N, K)`, within this context. Other models still return `(N, 1)`.

    Args:
        model: A reward model, with any wrappers.

    Yields:
        None: Nothing.
    """
    layers = _ensemble_layers(model)
    for layer in layers:
        layer.gives_every_head = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gives_every_head = False


def bootstrap_counts(seed: int, sources: Tensor, rows: Tensor, heads: int) -> Tensor:
    """Draw how often each row occurs in the bootstrap sample of each head, from Poisson(1).

    Sampling R rows with replacement gives each row a Binomial(R, 1/R) count, which is Poisson(1) for large R. A count
    only depends on the seed, the row and the head, so it is the same in every epoch, batch and process, and after a
    resume. A row with count 0 for all heads (a share of e^-K: 14% for two heads, 0.03% for eight) does not train.

    Args:
        seed: Seed of the run.
        sources: Number of the data source of each row, shape `(G,)`.
        rows: Number of each row in its source, shape `(G,)`.
        heads: Number of heads, K.

    Returns:
        Counts, shape `(K, G)`, float32, on the device of `rows`.

    Source:
        Oza and Russell (2001), "Online bagging and boosting", section 2.
    """
    number = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    for part in (sources.cpu().numpy(), rows.cpu().numpy()):
        number = _mixed(number ^ part.astype(np.int64).view(np.uint64))
    each = _mixed(number[None, :] ^ np.arange(1, heads + 1, dtype=np.uint64)[:, None])  # (K, G)
    uniform = (each >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(np.searchsorted(_POISSON, uniform, side="right").astype(np.float32)).to(rows.device)


_POISSON = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 17)]))
"""P(count <= k) under Poisson(1)."""


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hash 64-bit integers with SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


# --- on disk ---------------------------------------------------------------------------------------------------------


def save_heads(model: nn.Module, folder: str | Path) -> Path | None:
    """Save the heads of an ensemble in the model folder. For other models, nothing is written.

    Args:
        model: The model.
        folder: Its folder.

    Returns:
        The file, or None.
    """
    layers = _trained_ensemble(model)
    path = Path(folder) / HEADS_FILE
    if not layers:
        path.unlink(missing_ok=True)  # from an earlier model in this folder
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in saved_state(model).items()}
    save_file(tensors, path, metadata={"format": "pt", "reward_heads": json.dumps(number_of_heads(model))})
    return path


def saved_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the saved heads: `<layer>.weight` `(K, H)` and `<layer>.bias` `(K,)`."""
    layers = _trained_ensemble(model).items()
    return {f"{name}.{part}": value.detach() for name, layer in layers for part, value in _parts(layer).items()}


def load_heads(model: nn.Module, path: str | Path) -> None:
    """Load saved heads into a model, in place. A model with one head becomes an ensemble.

    Args:
        model: A reward model whose head is the mean of these heads.
        path: The file with the heads.

    Raises:
        ValueError: If the file is damaged or belongs to another model.
    """
    tensors = _read(Path(path))
    count = max((len(tensor) for tensor in tensors.values()), default=0)
    if number_of_heads(model) == 1 and count > 1:
        add_heads(model, count, 0)
    expected = saved_state(model)
    if {name: value.shape for name, value in expected.items()} != {name: each.shape for name, each in tensors.items()}:
        raise ValueError(
            f"The heads of this model must have the shapes {_shapes(expected)}, but those in {path} have "
            f"{_shapes(tensors)}. Use the file in the folder of this model."
        )
    for name, value in expected.items():
        mean, found = value.mean(0), tensors[name].to(value).mean(0)
        if not torch.allclose(mean, found, rtol=_MEAN_TOLERANCE, atol=_MEAN_TOLERANCE * float(mean.abs().max())):
            raise ValueError(
                f"The mean of the heads in {path} must equal the head of the model, but {name} differs by "
                f"{float((mean - found).abs().max()):.1e}. Use the file in the folder of this model."
            )
    for name, value in expected.items():
        value.copy_(tensors[name])


def with_saved_heads(model: nn.Module) -> None:
    """Restore the ensemble of a model that was loaded as the mean of its heads, in place.

    Args:
        model: A model that `AutoModelForRewardScoring` loaded.

    Raises:
        ValueError: If the file with the heads is damaged or belongs to another model.
    """
    saved = getattr(unwrap_model(model), "saved_heads", None)
    if saved is not None and number_of_heads(model) == 1:
        load_heads(model, saved)


def count_saved(path: str | Path) -> int:
    """Return the number of heads in a file."""
    return max((len(tensor) for tensor in _read(Path(path)).values()), default=0)


def heads_file(name_or_path: str | Path, **hub: Any) -> Path | None:
    """Return the file with the heads of a saved ensemble, None if it is not available.

    Args:
        name_or_path: Folder or Hub id.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Returns:
        The file.
    """
    return optional_file(name_or_path, HEADS_FILE, **hub)


def _read(path: Path) -> dict[str, Tensor]:
    require_complete_file(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    refuse_non_finite(path, tensors.items())
    return tensors


def _parts(layer: EnsembleLinear) -> dict[str, Tensor]:
    return {"weight": layer.head_weight, **({} if layer.head_bias is None else {"bias": layer.head_bias})}


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in sorted(tensors.items())) or "nothing"


def _ensemble_layers(model: nn.Module) -> list[EnsembleLinear]:
    return [module for module in model.modules() if isinstance(module, EnsembleLinear)]


def _trained_ensemble(model: nn.Module) -> dict[str, EnsembleLinear]:
    """Return the layers by name in the model without wrappers; of PEFT's two copies, the trained one."""
    return {
        _plain_name(name): layer
        for name, layer in model.named_modules()
        if isinstance(layer, EnsembleLinear) and ".original_module" not in name
    }


def _plain_name(name: str) -> str:
    name = re.sub(r"^(module\.|_orig_mod\.)*(base_model\.model\.)?", "", name)
    return re.sub(r"\.(modules_to_save\.[^.]+|original_module)(?=\.|$)", "", name)
