"""Draw the differences between our trainer and TRL's, from the files of `trl_comparison.py`.

    python recipes/studies/trl_figure.py --out docs/images/trl_comparison.svg \
        UKPConvArg1=runs/trl/ukp_full.differences.json UKPConvArg1=runs/trl/ukp_lora.differences.json

Each line is a data set, kind of training and learning rate, with the 95% interval of (ours - TRL), clustered by prompt.
The shaded range is worse than the tolerance: 2 points of accuracy, or 0.01 nats of log loss.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_reward.evaluation.drawing import as_svg

TOLERANCES = {"accuracy": -0.02, "log loss": 0.01}
COLOURS = {"equal epochs": "#1f5fa8", "equal time": "#c2570c"}


def main(words: Sequence[str] | None = None) -> None:
    """Read the differences and write the figure."""
    parser = ArgumentParser(description="Draw the differences from TRL.")
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help="name of the data set, and a file of differences")
    parser.add_argument("--out", type=Path, required=True, help="SVG file")
    options = parser.parse_args(sys.argv[1:] if words is None else words)
    lines = [line for given in options.files for line in lines_of(*given.split("=", 1))]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(as_svg(draw(lines), "trl-comparison"), encoding="utf-8")


def lines_of(name: str, file: str) -> list[dict[str, Any]]:
    """Return the lines of a file, on held-out and on transfer pairs."""
    return [
        {
            "label": f"{name}{', transfer' if pairs == 'transfer' else ''}: {each['kind']}, {each['rate']:.0e}",
            "comparison": "equal epochs" if each["epochs"] == each["TRL epochs"] else "equal time",
            **{measure: each[measure] for measure in TOLERANCES},
        }
        for pairs, found in json.loads(Path(file).read_text(encoding="utf-8")).items()
        for each in found
    ]


def draw(lines: Sequence[dict[str, Any]]) -> Figure:
    """Return the figure: one panel for each measure."""
    labels = list(dict.fromkeys(line["label"] for line in lines))
    figure = Figure(figsize=(9, 1.3 + 0.32 * len(labels)), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2, sharey=True), TOLERANCES, strict=True):
        draw_panel(axes, lines, labels, measure)
    figure.axes[0].set_yticks(range(len(labels)), labels)
    figure.axes[0].set_ylim(len(labels) - 0.4, -0.6)
    used = [name for name in COLOURS if any(line["comparison"] == name for line in lines)]
    handles = [figure.axes[0].plot([], [], "o-", color=COLOURS[name], label=name)[0] for name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(used), frameon=False)
    return figure


def draw_panel(axes: Axes, lines: Sequence[dict[str, Any]], labels: Sequence[str], measure: str) -> None:
    """Draw the estimates and intervals of a measure."""
    for line in lines:
        value, low, high = line[measure]
        place = labels.index(line["label"]) + (0.18 if line["comparison"] == "equal time" else 0)
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", markersize=4, capsize=2,
                      color=COLOURS[line["comparison"]])  # fmt: skip
    limit, bounds = TOLERANCES[measure], axes.get_xlim()
    worse = (bounds[0], limit) if limit < 0 else (limit, bounds[1])
    axes.axvspan(*sorted(worse), color="#d9534f", alpha=0.12, linewidth=0)
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_xlim(min(bounds[0], limit), max(bounds[1], limit))
    better = "right" if limit < 0 else "left"
    axes.set_title(f"{measure}: ours - TRL (better to the {better})", fontsize=10)
    axes.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    main()
