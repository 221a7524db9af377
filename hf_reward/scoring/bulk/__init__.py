"""Bulk scoring of tables of any size, in shards; an interrupted run resumes."""

from hf_reward.scoring.bulk.run import check_before_scoring, score_files
from hf_reward.scoring.bulk.settings import BulkReport, BulkSettings, Counts, parse_part
from hf_reward.scoring.bulk.shard_scoring import Scorer

__all__ = ["BulkReport", "BulkSettings", "Counts", "Scorer", "check_before_scoring", "parse_part", "score_files"]
