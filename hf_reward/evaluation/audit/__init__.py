"""Audit of a reward model: its biases with intervals and verdicts, examples and remedies."""

from hf_reward.evaluation.audit.cases import Text
from hf_reward.evaluation.audit.comparing import compare_audits
from hf_reward.evaluation.audit.family import AuditReport
from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, PROFILES, QUICK, Profile
from hf_reward.evaluation.audit.inputs.probe_data import read_probe_data
from hf_reward.evaluation.audit.report.files import read_audit, write_audit
from hf_reward.evaluation.audit.running import AuditRule, run_audit

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
