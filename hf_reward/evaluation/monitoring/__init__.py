"""Monitor of rewards during reinforcement learning: which property of the responses drifts, and is rewarded.

Texts become features (`features`), and these the statistics of a step (`steps`). Each series has a drift test
(`series`). `monitor` combines drifts and rewards to warnings; `trl_reward` and `served_run` feed it from TRL and from
the server.
"""

from hf_reward.evaluation.monitoring.monitor import DriftWarning, RewardMonitor
from hf_reward.evaluation.monitoring.trl_reward import MonitoredReward

__all__ = ["DriftWarning", "MonitoredReward", "RewardMonitor"]
