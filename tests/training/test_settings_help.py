"""Every setting has one topic, a type, a default and a line of help."""

from collections import Counter
from dataclasses import fields

from transformers import TrainingArguments

from hf_reward.training.run_arguments import RunArguments
from hf_reward.training.setting_groups import COMMON_HELP, INHERITED_GROUPS, OTHER, SETTING_GROUPS
from hf_reward.training.settings_help import describe_settings
from hf_reward.training.training_args import RewardConfig

SETTINGS = {each.name: each for each in describe_settings()}


def test_every_own_setting_has_one_topic():
    counted = Counter(name for names in SETTING_GROUPS.values() for name in names)
    inherited = TrainingArguments.__dataclass_fields__
    own = [each.name for each in fields(RewardConfig) if each.init and inherited.get(each.name) is not each]
    own += [each.name for each in fields(RunArguments)]
    assert {name: counted[name] for name in own} == dict.fromkeys(own, 1)
    assert max(counted.values()) == 1


def test_no_setting_has_two_topics_and_every_listed_name_is_a_setting():
    counted = Counter(name for names in (SETTING_GROUPS | INHERITED_GROUPS).values() for name in names)
    assert max(counted.values()) == 1
    assert {name for names in SETTING_GROUPS.values() for name in names} <= SETTINGS.keys()
    assert all(SETTINGS[name].is_inherited and name in sum(SETTING_GROUPS.values(), ()) for name in COMMON_HELP)


def test_every_setting_is_described_in_the_order_of_the_topics():
    expected = {each.name for kind in (RunArguments, RewardConfig) for each in fields(kind) if each.init}
    assert SETTINGS.keys() == expected
    topics = list(dict.fromkeys(each.group for each in SETTINGS.values()))
    assert [topic for topic in topics if topic != OTHER] == [*SETTING_GROUPS, *INHERITED_GROUPS]
    assert all(each.type and each.default for each in SETTINGS.values())
    assert not [each.name for each in SETTINGS.values() if not each.help]


def test_types_and_defaults_are_those_of_yaml():
    shown = {name: (SETTINGS[name].type, SETTINGS[name].default) for name in SETTINGS}
    assert shown["model_name_or_path"] == ("str", "required")
    assert shown["train_data"] == ("list[str]", "required")
    assert shown["lora_target_modules"] == ("list[str]", "all-linear")
    assert shown["max_length"] == ("int", "1024")
    assert shown["bf16"] == ("bool", "null")
    assert shown["disable_dropout"] == ("bool", "true")
    assert shown["separator"] == ("str", "''")
    assert shown["eval_strategy"] == ("no|steps|epoch", "no")
    assert shown["model_card"] == ("dict", "null")
