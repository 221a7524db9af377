"""Name -> benchmark."""

from collections.abc import Mapping

from hf_reward.evaluation.benchmarks.base import Benchmark
from hf_reward.evaluation.benchmarks.judgebench import JudgeBench
from hf_reward.evaluation.benchmarks.judgebench_pro import JudgeBenchPro
from hf_reward.evaluation.benchmarks.llmbar import LLMBar
from hf_reward.evaluation.benchmarks.m_rewardbench import MRewardBench
from hf_reward.evaluation.benchmarks.multimodal_rewardbench import MultimodalRewardBench
from hf_reward.evaluation.benchmarks.own import Lists, Pairs
from hf_reward.evaluation.benchmarks.ppe_correctness import PPECorrectness
from hf_reward.evaluation.benchmarks.ppe_preference import PPEPreference
from hf_reward.evaluation.benchmarks.rewardbench import RewardBench
from hf_reward.evaluation.benchmarks.rewardbench2 import RewardBench2
from hf_reward.evaluation.benchmarks.rewardmath import RewardMATH
from hf_reward.evaluation.benchmarks.rewordbench import ReWordBench
from hf_reward.evaluation.benchmarks.rm_bench import RMBench
from hf_reward.evaluation.benchmarks.rmb import RMB
from hf_reward.evaluation.benchmarks.vl_rewardbench import VLRewardBench

PUBLIC: dict[str, Benchmark] = {
    each.name: each
    for each in (
        RewardBench(),
        RewardBench2(),
        RMBench(),
        JudgeBench(),
        RMB(),
        LLMBar(),
        PPEPreference(),
        PPECorrectness(),
        MRewardBench(),
        JudgeBenchPro(),
        RewardMATH(),
        ReWordBench(),
        VLRewardBench(),
        MultimodalRewardBench(),
    )
}
"""Benchmarks of `hf-reward benchmark all`."""
OWN = {each.name: each for each in (Pairs, Lists)}
"""Benchmarks of the user's own data."""
NAMES = (*PUBLIC, *OWN)


def benchmark_named(name: str, layout: str = "auto", columns: Mapping[str, str] | None = None) -> Benchmark:
    """Find a benchmark.

    Args:
        name: Its name.
        layout: Row layout of own data.
        columns: Our column name -> column name in own data.

    Returns:
        The benchmark.

    Raises:
        ValueError: If there is no such benchmark, or it does not support `layout` and `columns`.
    """
    if name in OWN:
        return OWN[name](layout, columns)
    if name not in PUBLIC:
        raise ValueError(f"There is no benchmark {name!r}. Available: {', '.join(NAMES)}.")
    if layout != "auto" or columns:
        raise ValueError(f"`layout` and `columns` are for {', '.join(OWN)}; {name} reads its published columns.")
    return PUBLIC[name]
