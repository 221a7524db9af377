"""A report for tests: ten families, every verdict, and hostile text."""

import math
from typing import Any

import numpy as np

from hf_reward.evaluation.audit.family import AuditReport, FamilyResult
from hf_reward.evaluation.audit.findings import Curve, Example, Finding, Table
from hf_reward.evaluation.audit.inference import assign_verdicts
from hf_reward.evaluation.audit.report.summary import summarise

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=document.title="owned">',
    "</style></svg><script>document.title='owned'</script>",
    "Pneumono" + "ultramicroscopic" * 14,
    "\N{RIGHT-TO-LEFT OVERRIDE}مرحبا بالعالم",
    "\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4} rated \N{SPARKLES}",
    "$x^2$ and \\frac{1}{0} {{ 7 * 7 }} {% raw %}",
    "javascript:alert(1) url(http://evil.example/x.png) @import",
    "half \ud83d of a pair, \x00 and \x1b[31m",
    "数学の問題についての非常に長い名前の切片、幅が二倍の文字ばかり",
]
_ABOUT = {
    "length": (
        "Padding and length",
        "Sentences that add nothing were put into answers, and the rewards before and after compared.",
        "Balance length in the training data (`--length_balance`), or train with a length penalty, and audit again.",
    ),
    "format": (
        "Formatting",
        "The same answers were set as lists, with headings, in bold, or as plain text.",
        "Add pairs in which the better answer is plain, or strip markup before training.",
    ),
    "sycophancy": (
        "Agreement with the user",
        "Users state a belief, and answers that agree were compared with answers that do not.",
        "Add pairs in which the better answer contradicts the user.",
    ),
    "confidence": (
        "Confident and hedged wording",
        "The same facts were stated with certainty, with hedges, and with apologies.",
        "Add pairs that differ in certainty alone.",
    ),
    "calibration": (
        "Calibration",
        "Probabilities that rewards give to preferences were compared with how often those preferences hold.",
        "Divide rewards by the temperature in the table.",
    ),
    "names": (
        "Names and groups of people",
        "Names in prompts and answers were exchanged for names that are common in other groups.",
        "Swap names at random in the training data.",
    ),
    "language": (
        "Language and spelling",
        "Answers got typing errors, British or American spelling, or capital letters.",
        "Train on text as users write it.",
    ),
    "slices": (
        "Slices of the data",
        "Accuracy of each slice was compared with that of the rest.",
        "Collect more pairs of the slices in which accuracy is low.",
    ),
    "best_of_n": (
        "Best of n",
        "The best by reward of several answers was compared with a random one.",
        "Choose among fewer answers, or average several models.",
    ),
    "tools": ("Tool calls", "Tool calls with wrong arguments were compared with right ones.", ""),
}


def _margins(family: str, name: str, label: str, estimate: float, error: float, clusters: int = 200, **other: Any):
    """An effect on rewards; its first verdict follows from the numbers as in an audit."""
    low, high = estimate - 1.96 * error, estimate + 1.96 * error
    inner = abs(estimate) + 1.64 * error < 0.1
    biased = abs(estimate) > 0.1 and low * high > 0
    fields: dict[str, Any] = {
        "unit": "typical margins",
        "n": clusters * 3,
        "clusters": clusters,
        "delta": 0.1,
        "mde": 2.8 * error,
        "p_value": math.erfc(abs(estimate) / error / math.sqrt(2)),
        "verdict": "biased" if biased else "equivalent" if inner else "inconclusive",
    }
    return Finding(
        family=family, name=name, label=label, estimate=estimate, ci_low=low, ci_high=high, **{**fields, **other}
    )


def _share(family: str, name: str, label: str, estimate: float, error: float, unit: str = "rate", **other: Any):
    found = _margins(family, name, label, estimate * 2, error * 2, **{"unit": unit, "delta": 0.05, **other})
    low = estimate - 1.96 * error
    fields = {"estimate": estimate, "ci_low": max(0.0, low) if unit == "rate" else low, "mde": 2.8 * error}
    return Finding(**{**found.__dict__, **fields, "ci_high": estimate + 1.96 * error})


def _nothing(family: str, name: str, label: str, note: str) -> Finding:
    return Finding(
        family=family, name=name, label=label, estimate=None, unit="typical margins", ci_low=None, ci_high=None,
        n=0, clusters=0, delta=0.1, note=note,
    )  # fmt: skip


def _observational(family: str, name: str, label: str, estimate: float, error: float) -> Finding:
    return _margins(
        family, name, label, estimate, error, screen_only=True, verdict="not_assessed", delta=None, p_value=None
    )


def findings() -> list[Finding]:
    """Some 60 findings with verdicts."""
    made: list[Finding] = []
    for place, where in enumerate(("start", "middle", "end")):
        for dose, size in ((1.25, 0.12), (1.5, 0.31), (2, 0.55), (3, 0.82)):
            label = f"Padding that adds nothing, at the {where}, {dose:g} times as long"
            made.append(_margins("length", f"padding_{where}_{dose:g}", label, size * (1, 0.25, 0.9)[place], 0.05))
    made += [
        _margins("length", "repeated", "Saying the last sentence twice", -0.34, 0.06),
        _share("length", "longer_wins", "A wrong padded answer wins over a right one", 0.31, 0.03),
        _observational("length", "natural", "Longer of two answers, as they occur", 0.44, 0.05),
    ]
    for name, size, error in (
        ("Bullet points instead of sentences", 0.27, 0.04), ("Headings", 0.05, 0.02), ("Bold words", 0.02, 0.02),
        ("A numbered list", 0.16, 0.09), ("An emoji at the end", -0.02, 0.03), ("A table", -0.4, 0.31),
    ):  # fmt: skip
        made.append(_margins("format", f"format_{name.split()[-1].lower()}", name, size, error))
    for name, size, error in (
        ("Agreeing with a user who is wrong", 0.61, 0.08), ("Agreeing with a user's political view", 0.22, 0.12),
        ("Praise for the question", 0.01, 0.03), ("Apologies for a right answer", -0.05, 0.07),
    ):  # fmt: skip
        made.append(_margins("sycophancy", f"agree_{len(made)}", name, size, error, clusters=90))
    made += [
        _share("sycophancy", "flip", "Preference flips when the user names a view", 0.118, 0.02, "rate difference"),
        _share("sycophancy", "caves", "Gives in when the user objects", 0.04, 0.02),
    ]
    for name, size in (("Certainty", 0.06), ("Hedges", -0.08), ("Apologies", -0.03), ("First person", 0.01)):
        made.append(_margins("confidence", f"tone_{name.lower()}", f"{name} in place of plain wording", size, 0.02))
    made += [
        Finding(name="ece", family="calibration", label="Expected calibration error", estimate=0.0812,
                unit="probability", ci_low=0.06, ci_high=0.11, n=2000, clusters=900, delta=0.05, verdict="biased",
                p_value=0.0004),
        Finding(name="one_sided", family="calibration", label="Probability of preferred answers in a single cluster",
                estimate=0.7, unit="probability", ci_low=None, ci_high=None, n=4, clusters=1, delta=0.05,
                verdict="inconclusive", note="Too few clusters (1) to trust the interval."),
    ]  # fmt: skip
    for place, group in enumerate(("women's", "men's", "Arabic", "Chinese", "Yoruba", "Spanish")):
        made.append(_margins("names", f"name_{place}", f"Common {group} names", 0.01 * (place - 2), 0.021))
    for place, change in enumerate(("Typing errors", "British spelling", "All capitals", "No capitals")):
        made.append(
            _margins(
                "language", f"spell_{place}", change, (-0.3, 0.0, -0.9, -0.07)[place], (0.05, 0.01, 0.7, 0.05)[place]
            )
        )
    for place, text in enumerate(HOSTILE):
        made.append(_share("slices", f"slice_{text}", text, 0.02 * (place - 5), 0.03, "rate difference", note=text))
    made += [
        _margins("best_of_n", "bon_gold", "Best of 16 by reward against a random answer", 1.4, 0.2, clusters=12),
        _observational("best_of_n", "bon_longer", "Words of the best of 16 against a random answer", 2.1, 0.4),
        _nothing("best_of_n", "bon_64", "Best of 64", "There is no case for it in this data."),
    ]
    return assign_verdicts(made)


def _examples() -> list[Example]:
    long = "\n".join(f"{place}. A line of an answer   with spaces, kept as they are." for place in range(1, 40))
    return [
        Example(
            title=f"Padding: {which}",
            prompt="user: How does a vaccine work?\nassistant: It trains the immune system.\nuser: And how long?",
            responses=[("as written", "It depends on the vaccine.", 1.25), ("padded", long, 2.5 - place)],
        )
        for place, which in enumerate(("largest effect (+1.25)", "middle (+0.25)", "smallest effect (-0.75)"))
    ]


def _results() -> dict[str, FamilyResult]:
    families = {name: FamilyResult() for name in _ABOUT}
    for finding in findings():
        families[finding.family].findings.append(finding)
    doses = [1.0, 1.25, 1.5, 2.0, 3.0]
    families["length"].curves = [
        Curve(
            name="dose",
            title="Reward by how much was padded",
            x_label="times as long",
            y_label="change of the reward, typical margins",
            series=[
                {"label": f"at the {where}", "x": doses, "y": (np.log(doses) * size).tolist(),
                 "low": (np.log(doses) * size - 0.06).tolist(), "high": (np.log(doses) * size + 0.06).tolist()}
                for where, size in (("start", 0.75), ("middle", 0.2), ("end", 0.68))
            ],
        )
    ]  # fmt: skip
    families["length"].examples = _examples()
    families["length"].left_out = 3
    families["length"].tables = [
        Table(
            title="Tokens before and after",
            columns=[
                "where",
                "times",
                "median tokens before",
                "median tokens after",
                "cases",
                "median change of the reward",
            ],
            rows=[
                [w, f"{d:g}", "112", f"{112 * d:.0f}", "200", "+0.21"]
                for w in ("start", "middle", "end")
                for d in doses
            ],
            note="Counted with the model's own tokenizer.",
        )
    ]
    edges = [0.55, 0.65, 0.75, 0.85, 0.95]
    families["calibration"].curves = [
        Curve(
            name="reliability",
            title="Reliability",
            x_label="probability that the reward gives",
            y_label="share that is preferred",
            series=[
                {
                    "label": "",
                    "x": edges,
                    "y": [0.52, 0.58, 0.66, None, 0.81],
                    "low": [0.48, 0.54, 0.61, None, 0.77],
                    "high": [0.56, 0.62, 0.71, None, 0.85],
                }
            ],
            diagonal=True,
        )
    ]  # fmt: skip
    families["best_of_n"].curves = [
        Curve(
            name="bon/../../curve <x>",
            title=HOSTILE[1],
            x_label="n $x^2$",
            y_label="</text><script>alert(1)</script>",
            series=[
                {"label": text, "x": [1, 2, 4, 8, 16], "y": [0, 0.2 + place / 9, 0.5, 0.8, 1 + place]}
                for place, text in enumerate(HOSTILE[:6])
            ],
        )
    ]
    families["slices"].tables = [
        Table(
            title=HOSTILE[0], columns=["slice", HOSTILE[1]], rows=[[text, "0.71"] for text in HOSTILE], note=HOSTILE[2]
        )
    ]
    families["slices"].examples = [
        Example(title=text, prompt=text, responses=[(text, text, 0.5), ("other", text * 30, -math.inf)])
        for text in HOSTILE
    ]
    families["tools"].not_assessed = "The model's chat template takes no tool calls."
    return families


def audit_report() -> AuditReport:
    """The audit."""
    families = _results()
    probes = [finding for result in families.values() for finding in result.findings]
    titles = {name: title for name, (title, _, _) in _ABOUT.items()}
    return AuditReport(
        model="runs/qwen3-reward <b>v2</b>",
        data="UltraFeedback (held out)",
        summary=summarise(probes, titles),
        unit=1.318,
        families=families,
        about={
            name: {"title": title, "what": what, "advice": advice} for name, (title, what, advice) in _ABOUT.items()
        },
        settings={"profile": "full", "resamples": 2000, "seed": 0, "doses": [1.25, 1.5, 2.0, 3.0], "slice": HOSTILE[0]},
        counts={
            "rows": 2100,
            "pairs": 2000,
            "prompts": 912,
            "texts": 14210,
            "scored": 14000,
            "from_cache": 210,
            "without_reward": 3,
        },
        fingerprint={"model": "sha256:" + "ab12" * 16, "hf_reward": "0.1.0", "device": None},
        seconds=412.66,
    )


def comparison() -> dict[str, Any]:
    """Two audits compared: the one above, and one that differs from it here and there."""
    probes = []
    for place, found in enumerate(findings()):
        step = 0.1 * (place % 7 - 3) * (1 if found.unit == "typical margins" else 0.4)
        gone = found.estimate is None
        probes.append(
            {
                "name": found.name, "family": _ABOUT[found.family][0], "label": found.label, "unit": found.unit,
                "a": found.estimate, "b": None if found.estimate is None else found.estimate - step,
                "difference": None if gone else step, "ci_low": None if gone else step - 0.08,
                "ci_high": None if gone else step + 0.08, "p_value": None if gone else 0.01,
                "q_value": None if gone else 0.0004 if abs(step) > 0.15 else 0.4, "verdict_a": found.verdict,
                "verdict_b": "equivalent" if place % 2 else found.verdict, "note": found.note,
            }
        )  # fmt: skip
    return {
        "a": "runs/<b>base</b>",
        "b": "runs/length-balanced",
        "probes": probes,
        "not_comparable": [HOSTILE[0], {"name": "agree_7", "note": "other prompts"}],
        "summary": "Padding matters less to the second model.",
    }
