"""Preference data -> what is wrong with it: one object, written as JSON, HTML and a table.

`check` runs the findings in order; each has a file of its own.
"""

from hf_reward.evaluation.data_check.check import check_data
from hf_reward.evaluation.data_check.page import render_page, write_report
from hf_reward.evaluation.data_check.report import DataReport, Fix
from hf_reward.evaluation.data_check.table import print_report

__all__ = ["DataReport", "Fix", "check_data", "print_report", "render_page", "write_report"]
