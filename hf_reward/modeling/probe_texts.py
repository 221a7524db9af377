"""Eight conversations whose rewards are recorded with every save, to verify a reloaded model.

They were written for hf_reward and contain no user data. Each tests a different property of tokenizer, template or
padding: several turns, a system turn, other scripts, code, an empty response, whitespace, length.
"""

from hf_reward.data.preference_row import Message

PICTURE, OTHER_PICTURE = "picture", "other picture"
"""Names of the two probes of `image_probes` that differ in their picture only."""


def turns(*contents: str, system: str | None = None) -> list[Message]:
    """Return a conversation that starts with a user turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


PROBES: dict[str, list[Message]] = {
    "short": turns("Which is heavier, a litre of water or a litre of oil?", "A litre of water."),
    "multi_turn": turns(
        "I want to learn to bake bread.",
        "Good idea. Do you have yeast at home, or would you rather start with a flat bread?",
        "No yeast, only flour, salt and a pan.",
        "Then mix two cups of flour with a pinch of salt and warm water, rest the dough, and bake it in the dry pan.",
    ),
    "system": turns(
        "How long may I park here?",
        "Two hours on working days, with a parking disc behind the windscreen.",
        system="You answer questions about the rules of a small town, in one sentence.",
    ),
    "unicode": turns(
        "Übersetze bitte „Schönen Abend noch!“ ins Japanische und ins Griechische. 🙂",
        "Japanisch: 良い夜を！ Griechisch: Καλό βράδυ! — naïve façade, e\u0301 ≠ é, 𝒙² ≥ 0.",
    ),
    "code": turns(
        "Write a function that says whether a year is a leap year.",
        "```python\ndef is_leap(year: int) -> bool:\n"
        "    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)\n"
        '```\n\n\tIt is <true> for 2000 & false for 1900; {"year": 2024} passes.',
    ),
    "empty": turns("Say nothing at all.", ""),
    "whitespace": turns("List three\n\n\ncolours.  ", "\n- red\n- green\n- blue\n\n"),
    "long": turns(
        "Summarise these notes. "
        + " ".join(
            f"Day {day}: the river stood at {40 + 3 * day % 17} centimetres; the ferry made {day % 5 + 2} crossings."
            for day in range(1, 9)
        ),
        "The river rose and fell by some centimetres over eight days; the ferry made between two and six crossings a "
        "day, and nothing in the notes links the two.",
    ),
}
