"""Text features that an audit compares: the features of the data check and features of the wording."""

import re

from hf_reward.evaluation.data_check.style_features import FEATURES

_HEDGE = re.compile(
    r"\b(?:perhaps|maybe|might|possibly|probably|likely|it seems|i think|i believe|not sure|generally|usually)\b", re.I
)
_FIRST_PERSON = re.compile(r"\b(?:I|I'm|I've|I'd|my|me|mine|myself)\b")
_AGREEMENT = re.compile(r"\b(?:you(?:'re|\u2019re| are) (?:absolutely |so |quite )?right|i agree|good point)\b", re.I)
_CAPITALS = re.compile(r"\b[A-Z]{3,}\b")
_NUMBERS = re.compile(r"\d+(?:[.,]\d+)*")
_QUOTES = re.compile(r"\"[^\"\n]+\"|\u201c[^\u201d\n]+\u201d")
_SURE = re.compile(r"\b(?:definitely|certainly|clearly|obviously|undoubtedly|of course|always|never)\b", re.I)

AUDIT_FEATURES = {
    **FEATURES,
    "hedges": lambda text: len(_HEDGE.findall(text)),
    "words of certainty": lambda text: len(_SURE.findall(text)),
    "agreement with the user": lambda text: len(_AGREEMENT.findall(text)),
    "first person": lambda text: len(_FIRST_PERSON.findall(text)),
    "numbers": lambda text: len(_NUMBERS.findall(text)),
    "quotes": lambda text: len(_QUOTES.findall(text)),
    "words in capitals": lambda text: len(_CAPITALS.findall(text)),
}
"""Feature -> its count in an answer."""
