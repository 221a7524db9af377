"""Preference data -> a report of its problems as JSON, an HTML page and tables.

`check` runs the checks in order; each has its own module.
"""

from hf_reward.evaluation.data_check.check import check_data
from hf_reward.evaluation.data_check.page import render_page, write_report
from hf_reward.evaluation.data_check.report import DataReport, Fix
from hf_reward.evaluation.data_check.table import print_report

__all__ = ["DataReport", "Fix", "check_data", "print_report", "render_page", "write_report"]
