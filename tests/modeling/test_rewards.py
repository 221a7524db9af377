"""The reward of a sequence is the same alone, in any batch and with any padding."""

import pytest
import torch
from conftest import DECODERS, ENCODERS, randomize_head

from hf_reward import AutoModelForRewardScoring, DataCollatorForPreference, compute_rewards
from hf_reward.losses.functions import PADDING_RANK
from hf_reward.modeling.rewards import last_attended

ABSOLUTE_POSITIONS = {"gpt2"}  # left padding shifts them; such models are saved with `padding_side="right"`


def make_sequences(count: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 250, (4 + 3 * n,), generator=generator).tolist() for n in range(count)]


def make_row(sequences: list[list[int]], ranks: list[int], number: int = 0) -> dict:
    return {
        "input_ids": sequences,
        "ranks": ranks,
        "prefix_length": 0,
        "group": number,
        "row": number,
        "source": "data",
        "weight": 1.0,
        "margin": None,
        "probability": None,
    }


def collate(sequences: list[list[int]], multiple: int | None = None) -> dict[str, torch.Tensor]:
    """All sequences as one group."""
    collator = DataCollatorForPreference(pad_token_id=0, pad_to_multiple_of=multiple)
    return collator([make_row(sequences, list(range(len(sequences))))])


def on_the_left(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch with its padding on the left."""
    lengths = batch["attention_mask"].sum(1).tolist()
    moved = {
        name: torch.stack([row.roll(len(row) - n) for row, n in zip(batch[name], lengths, strict=True)])
        for name in ("input_ids", "attention_mask")
    }
    return {**batch, **moved}


def rewards_and_gradients(model: torch.nn.Module, batches: list[dict]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rewards of all batches in order, and the gradient of a fixed uneven sum of them."""
    model.zero_grad()
    rewards = torch.cat([compute_rewards(model, batch).flatten() for batch in batches])
    (rewards * torch.linspace(-1, 2, len(rewards))).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return rewards.detach(), gradients


def assert_same(found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    floor = 1e-5 * max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=1e-4, atol=floor, msg=lambda text, n=name: f"{n}: {text}"
        )


def load_random(folder) -> torch.nn.Module:
    model = AutoModelForRewardScoring.from_pretrained(folder).eval()
    randomize_head(model)
    return model


@pytest.mark.parametrize("arch", [*DECODERS, *ENCODERS])
def test_a_sequence_gets_one_reward_and_one_gradient_however_it_is_batched(arch, make_model_folder):
    model = load_random(make_model_folder(arch))
    sequences = make_sequences()
    alone = rewards_and_gradients(model, [collate([sequence]) for sequence in sequences])
    assert alone[0].std() > 0.01
    assert_same(rewards_and_gradients(model, [collate(sequences)]), alone)
    assert_same(rewards_and_gradients(model, [collate(sequences, multiple=40)]), alone)
    assert_same(rewards_and_gradients(model, [collate(sequences[:2]), collate(sequences[2:], multiple=24)]), alone)
    if arch in DECODERS and arch not in ABSOLUTE_POSITIONS:
        assert_same(rewards_and_gradients(model, [on_the_left(collate(sequences, multiple=32))]), alone)


def test_the_order_within_a_batch_changes_no_reward(make_model_folder):
    model = load_random(make_model_folder("llama"))
    sequences = make_sequences()
    forward = compute_rewards(model, collate(sequences))
    backward = compute_rewards(model, collate(sequences[::-1]))
    torch.testing.assert_close(forward, backward.flip(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", DECODERS)
def test_a_decoder_is_read_at_the_last_attended_token(arch, make_model_folder):
    model = load_random(make_model_folder(arch))
    batch = collate(make_sequences())
    found = compute_rewards(model, batch)[0]
    hidden = model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    ends = batch["attention_mask"].sum(1) - 1
    expected = torch.stack([hidden[row, end] @ model.score.weight[0] for row, end in enumerate(ends)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_last_token_that_equals_the_pad_token_is_still_read_when_attended(make_model_folder):
    model = load_random(make_model_folder("llama"))
    sequence = [9, 8, 7, 0]  # stock classifiers would read one token early here
    hidden = model.base_model(input_ids=torch.tensor([sequence])).last_hidden_state
    expected = hidden[0, 3] @ model.score.weight[0]
    torch.testing.assert_close(
        compute_rewards(model, collate([sequence, [5] * 9]))[0, 0], expected, rtol=1e-5, atol=1e-5
    )


def test_ragged_groups_lie_where_their_ranks_lie(make_model_folder):
    model = load_random(make_model_folder("llama"))
    one, two, three, four, five = make_sequences()
    rows = [make_row([one, two, three], [1, 0, 2]), make_row([four, five], [0, 1], number=1)]
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    found = compute_rewards(model, batch)
    assert found.shape == batch["ranks"].shape == (2, 3)
    assert found.dtype == torch.float32
    assert batch["ranks"][1, 2] == PADDING_RANK
    assert found[1, 2] == 0
    expected = compute_rewards(model, collate([one, two, three, four, five]))[0]
    torch.testing.assert_close(torch.cat([found[0], found[1, :2]]), expected, rtol=1e-5, atol=1e-5)


def test_rewards_of_a_bfloat16_model_are_float32(make_model_folder):
    model = AutoModelForRewardScoring.from_pretrained(make_model_folder("llama"), dtype="bfloat16").eval()
    randomize_head(model)
    batch = collate(make_sequences())
    found = compute_rewards(model, batch)
    exact = compute_rewards(model.float(), batch)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1.0


def test_last_attended_finds_the_end_on_either_side():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    assert last_attended(mask).tolist() == [1, 3, 3, 2]
