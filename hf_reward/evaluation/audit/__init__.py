"""Reward model + preference rows -> which biases it has, with intervals and verdicts, and what to do about them."""

from hf_reward.audit.comparing import compare_audits
from hf_reward.audit.evidence import AuditReport, Finding, Text
from hf_reward.audit.material import FULL, PROFILES, QUICK, Profile
from hf_reward.audit.probe_data import read_probe_data
from hf_reward.audit.running import AuditRule, run_audit
from hf_reward.audit.written import read_audit, write_audit

__all__ = [
    "FULL",
    "PROFILES",
    "QUICK",
    "AuditReport",
    "AuditRule",
    "Finding",
    "Profile",
    "Text",
    "compare_audits",
    "read_audit",
    "read_probe_data",
    "run_audit",
    "write_audit",
]
