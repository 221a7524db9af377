"""Several reward heads on one backbone: the last layer times K, saved as one stock layer with the K beside it.

The last layer is linear, so the mean of K of them is one of them. Everywhere but in the training loss and where
somebody asks for each head, an ensemble is that mean layer: same name, same shape, same file.
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
from hf_reward.modeling.weight_safety import optional_file, refuse_non_finite, require_whole

logger = logging.getLogger(__name__)

HEADS_FILE = "reward_heads/heads.safetensors"
"""In a folder of its own: vLLM and its like take every `*.safetensors` beside config.json for a part of the model."""
START_SPREAD = 0.1
"""Standard deviation over new heads of the reward of hidden states with mean square 1."""
_MEAN_TOLERANCE = 1e-4


class EnsembleLinear(Float32Linear):
    """K linear layers with one output each, as one layer that gives their mean, or inside `every_head` all K.

    Made from a `Float32Linear` in place by `add_heads`. Its parameters are `head_weight` `(K, H)` and, where that layer
    had a bias, `head_bias` `(K,)`. `weight`, `bias` and the state dict are those of the mean layer; loading such a
    state moves all heads alike, so that their mean is what was loaded.
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
        state_dict, prefix, _, _, missing, _, errors = arguments  # torch gives them by position
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
    """How many reward heads a model has: 1 unless it is an ensemble."""
    return max((len(layer.head_weight) for layer in _ensemble_layers(model)), default=1)


def add_heads(model: nn.Module, count: int, seed: int) -> None:
    """Put `count` heads in the place of the last layer, in place; the model's rewards stay as they are.

    The new heads differ by small independent normal numbers with mean zero over the heads. Equal starts would do as
    well where the data speak; where they are silent, heads that differ say so (Lakshminarayanan et al. 2017).

    Args:
        model: A reward model, perhaps wrapped by PEFT.
        count: How many heads, 2 or more.
        seed: Of those numbers; the global generators are not touched.

    Raises:
        ValueError: If the model has not exactly one last layer.
    """
    layers = output_layers(model)
    if len({_plain_name(name) for name, _ in layers}) != 1:
        raise ValueError(
            f"An ensemble needs a model with one last layer that gives the reward, but "
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
    made: Any = None
    if bias is not None:
        made = nn.Parameter(bias.detach().float().repeat(count), requires_grad=bias.requires_grad)
    layer.register_parameter("head_bias", made)
    layer.gives_every_head = False  # type: ignore[assignment]


@contextmanager
def every_head(model: nn.Module) -> Iterator[None]:
    """Within this, `logits` of an ensemble have a column for each head, `(N, K)`; those of other models stay `(N, 1)`.

    Args:
        model: A reward model, wrapped by whatever it may be.

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
    """How often each head's resampled data hold each row: independent draws from Poisson(1).

    Drawing R rows with replacement gives each row a Binomial(R, 1/R) count, which for large R is Poisson(1); drawn row
    by row no list of rows is needed. A count depends on the seed, the row and the head alone, so it is the same in
    every epoch, batch and process, and after a resume. A row that no head holds (share e^-K: 14% for two heads, 0.03%
    for eight) does not train.

    Args:
        seed: Of the run.
        sources: Number of the data source of each row, shape `(G,)`.
        rows: Number of each row in its source, shape `(G,)`.
        heads: How many heads, K.

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
    """SplitMix64 (Steele et al. 2014): 64 well mixed bits for each 64 bits."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


# --- on disk ---------------------------------------------------------------------------------------------------------


def save_heads(model: nn.Module, folder: str | Path) -> Path | None:
    """Write the heads of an ensemble beside the model that holds their mean; of another model nothing.

    Args:
        model: The model.
        folder: Its folder.

    Returns:
        The file, or None.
    """
    layers = _trained_ensemble(model)
    path = Path(folder) / HEADS_FILE
    if not layers:
        path.unlink(missing_ok=True)  # of an earlier model in this folder
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in saved_state(model).items()}
    save_file(tensors, path, metadata={"format": "pt", "reward_heads": json.dumps(number_of_heads(model))})
    return path


def saved_state(model: nn.Module) -> dict[str, Tensor]:
    """The heads of an ensemble as they are saved, `<layer>.weight` `(K, H)` and `<layer>.bias` `(K,)`."""
    layers = _trained_ensemble(model).items()
    return {f"{name}.{part}": value.detach() for name, layer in layers for part, value in _parts(layer).items()}


def load_heads(model: nn.Module, path: str | Path) -> None:
    """Give a model the heads that were saved beside it, in place, making it an ensemble if it is none yet.

    Args:
        model: A reward model that holds the mean of those heads.
        path: The file of heads.

    Raises:
        ValueError: If the file is damaged, or holds the heads of another model.
    """
    tensors = _read(Path(path))
    count = max((len(tensor) for tensor in tensors.values()), default=0)
    if number_of_heads(model) == 1 and count > 1:
        add_heads(model, count, 0)
    expected = saved_state(model)
    if {name: value.shape for name, value in expected.items()} != {name: each.shape for name, each in tensors.items()}:
        raise ValueError(
            f"{path} holds {_shapes(tensors)}, but this model needs {_shapes(expected)}. Take the file from the "
            "model's own folder."
        )
    for name, value in expected.items():
        mean, found = value.mean(0), tensors[name].to(value).mean(0)
        if not torch.allclose(mean, found, rtol=_MEAN_TOLERANCE, atol=_MEAN_TOLERANCE * float(mean.abs().max())):
            raise ValueError(
                f"The heads in {path} belong to another model: their mean is not the head of this one ({name} differs "
                f"by {float((mean - found).abs().max()):.1e}). Take both from one folder."
            )
    for name, value in expected.items():
        value.copy_(tensors[name])


def with_saved_heads(model: nn.Module) -> None:
    """Make a loaded mean of heads the ensemble it was saved from, in place; leave other models as they are.

    Args:
        model: A model that `AutoModelForRewardScoring` loaded.

    Raises:
        ValueError: If the file of heads is damaged or belongs to another model.
    """
    saved = getattr(unwrap_model(model), "saved_heads", None)
    if saved is not None and number_of_heads(model) == 1:
        load_heads(model, saved)


def count_saved(path: str | Path) -> int:
    """How many heads a file holds."""
    return max((len(tensor) for tensor in _read(Path(path)).values()), default=0)


def heads_file(name_or_path: str | Path, **hub: Any) -> Path | None:
    """Where the heads of a saved ensemble are, None if there are none to be had.

    Args:
        name_or_path: Folder or Hub id.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`.

    Returns:
        The file.
    """
    return optional_file(name_or_path, HEADS_FILE, **hub)


def _read(path: Path) -> dict[str, Tensor]:
    require_whole(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    refuse_non_finite(path, tensors.items())
    return tensors


def _parts(layer: EnsembleLinear) -> dict[str, Tensor]:
    return {"weight": layer.head_weight, **({} if layer.head_bias is None else {"bias": layer.head_bias})}


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in sorted(tensors.items())) or "nothing"


def _ensemble_layers(model: nn.Module) -> list[EnsembleLinear]:
    return [module for module in model.modules() if isinstance(module, EnsembleLinear)]


def _trained_ensemble(model: nn.Module) -> dict[str, EnsembleLinear]:
    """The layers by their names in the bare model; of PEFT's two copies the trained one."""
    return {
        _plain_name(name): layer
        for name, layer in model.named_modules()
        if isinstance(layer, EnsembleLinear) and ".original_module" not in name
    }


def _plain_name(name: str) -> str:
    name = re.sub(r"^(module\.|_orig_mod\.)*(base_model\.model\.)?", "", name)
    return re.sub(r"\.(modules_to_save\.[^.]+|original_module)(?=\.|$)", "", name)
