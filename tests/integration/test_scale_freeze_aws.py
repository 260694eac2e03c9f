"""scale-freeze and scale-thaw of AWS Auto Scaling groups, against moto's server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.balik.rollback.plugins.module_utils.errors import BalikError
from ansible_collections.balik.rollback.plugins.module_utils.scale.aws import NOTE, AutoScaling, session

from tests.servers.moto import moto

boto3 = pytest.importorskip("boto3", reason="boto3 and moto come with the project's test extra")
pytest.importorskip("moto", reason="boto3 and moto come with the project's test extra")

REGION = "ap-southeast-3"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with moto() as started:
        yield started


@pytest.fixture
def aws(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client; the groups that a test makes are gone after it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    client, _errors = session(REGION, "", url)
    client.create_launch_configuration(
        LaunchConfigurationName="web", ImageId="ami-12345678", InstanceType="t3.micro", SecurityGroups=[]
    )
    yield client
    for name in groups(client):
        client.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
    client.delete_launch_configuration(LaunchConfigurationName="web")


def make(client: Any, name: str, suspended: tuple[str, ...] = (), **tags: str) -> None:
    client.create_auto_scaling_group(
        AutoScalingGroupName=name,
        LaunchConfigurationName="web",
        MinSize=0,
        MaxSize=0,
        AvailabilityZones=[f"{REGION}a"],
        Tags=[{"Key": key, "Value": value, "PropagateAtLaunch": True} for key, value in tags.items()],
    )
    if suspended:
        client.suspend_processes(AutoScalingGroupName=name, ScalingProcesses=list(suspended))


def groups(client: Any) -> dict[str, tuple[set[str], dict[str, str]]]:
    """Name → suspended processes, tags."""
    pages = client.get_paginator("describe_auto_scaling_groups").paginate()
    return {
        group["AutoScalingGroupName"]: (
            {each["ProcessName"] for each in group["SuspendedProcesses"]},
            {tag["Key"]: tag["Value"] for tag in group["Tags"]},
        )
        for page in pages
        for group in page["AutoScalingGroups"]
    }


def scaling(client: Any, *names: str, run: str = "r1", **options: Any) -> AutoScaling:
    _client, errors = session(REGION, "", client.meta.endpoint_url)
    return AutoScaling(client, errors, REGION, options.pop("product", "lawyers-hub"), run, names, **options)


def test_alarms_and_schedules_rest_and_come_back_exactly_as_far(aws: Any) -> None:
    make(aws, "web")
    make(aws, "worker", suspended=("ScheduledActions", "AZRebalance"), team="hub")
    make(aws, "foreign")
    before = groups(aws)
    it = scaling(aws, "web", "worker")

    ready = it.ready()
    assert ready["before"] == {
        "suspends": {"web": ["AlarmNotification", "ScheduledActions"], "worker": ["AlarmNotification"]},
        "region": REGION,
        "account": "123456789012",
    }
    assert scaling(aws, "web", dry=True).freeze()["changed"] is True
    assert groups(aws) == before
    with pytest.raises(BalikError, match=r"web, worker: still scaled by AlarmNotification and ScheduledActions"):
        it.verify_frozen()

    assert it.freeze()["changed"] is True
    it.verify_frozen()
    frozen = groups(aws)
    assert frozen["web"] == ({"AlarmNotification", "ScheduledActions"}, {NOTE: frozen["web"][1][NOTE]})
    assert frozen["worker"][0] == {"AlarmNotification", "ScheduledActions", "AZRebalance"}
    assert frozen["foreign"] == before["foreign"]
    assert it.freeze()["changed"] is False
    assert scaling(aws, "web", "worker", run="r2").ready()["before"] == ready["before"]

    assert sorted(it.ready_to_thaw()["before"]["frozen"]) == ["web", "worker"]
    assert scaling(aws, "web", product="other").thaw()["changed"] is False
    with pytest.raises(BalikError, match="still frozen"):
        it.verify_thawed()
    assert it.thaw()["evidence"] == {"thawed": 2}
    it.verify_thawed()
    assert groups(aws) == before
    assert it.thaw()["changed"] is False

    assert it.freeze(["web", "gone"])["evidence"] == {"frozen": 1}
    it.thaw()
    assert groups(aws) == before


@pytest.mark.parametrize("killed_after", ["create_or_update_tags", "suspend_processes", "resume_processes"])
def test_killed_between_two_calls_the_next_run_comes_right(aws: Any, killed_after: str) -> None:
    make(aws, "web", suspended=("AZRebalance",))
    before = groups(aws)
    if killed_after == "resume_processes":
        scaling(aws, "web").freeze()

    class Killed(Exception):
        pass

    class Dying:
        """The client of a process that is killed right after one of its calls."""

        def __getattr__(self, name: str) -> Any:
            def call(**arguments: Any) -> Any:
                answer = getattr(aws, name)(**arguments)
                if name == killed_after:
                    raise Killed
                return answer

            return call

    it = AutoScaling(Dying(), (KeyError,), REGION, "lawyers-hub", "r1", ["web"])
    with pytest.raises(Killed):
        it.thaw() if killed_after == "resume_processes" else it.freeze()
    if killed_after != "resume_processes":
        scaling(aws, "web").freeze()
        scaling(aws, "web").verify_frozen()
    scaling(aws, "web").thaw()
    assert groups(aws) == before


def test_by_tags_over_many_pages(aws: Any) -> None:
    for number in range(60):
        make(aws, f"web-{number}", product="hub" if number % 20 == 0 else "other")
    it = scaling(aws, tags={"product": "hub"})
    assert it.freeze()["evidence"] == {"frozen": 3}
    assert sorted(name for name, (suspended, _) in groups(aws).items() if suspended) == ["web-0", "web-20", "web-40"]
    it.thaw()


@pytest.mark.parametrize(
    ("names", "tags", "message"),
    [
        (("wbe",), {}, r"Auto Scaling groups wbe: not in ap-southeast-3, which has web\. Correct"),
        ((), {"product": "x"}, r"Auto Scaling groups with product=x: none in ap-southeast-3"),
        ((), {}, r"scale_freeze_aws_groups: names no group"),
    ],
)
def test_bad_input_names_the_object(aws: Any, names: tuple[str, ...], tags: dict[str, str], message: str) -> None:
    make(aws, "web")
    with pytest.raises(BalikError, match=message):
        scaling(aws, *names, tags=tags).ready()


def test_a_group_that_another_products_rollback_holds_is_refused(aws: Any) -> None:
    make(aws, "web")
    scaling(aws, "web", product="desk").freeze()
    before = groups(aws)
    for act in (scaling(aws, "web").ready, scaling(aws, "web").freeze):
        with pytest.raises(BalikError, match=r"Auto Scaling groups web: frozen by the rollback of desk\. Let that end"):
            act()
    assert groups(aws) == before


def test_a_thaw_that_looks_in_another_region_than_the_freeze_is_refused(aws: Any) -> None:
    make(aws, "web")
    frozen = scaling(aws, "web")
    assert frozen.ready()["before"]["region"] == REGION
    frozen.freeze()
    client, errors = session("eu-central-1", "", aws.meta.endpoint_url)
    elsewhere = AutoScaling(client, errors, "eu-central-1", "lawyers-hub", "r1", recorded={"region": REGION})
    for act in (elsewhere.ready_to_thaw, elsewhere.thaw, elsewhere.verify_thawed):
        with pytest.raises(BalikError, match=f"found eu-central-1, and this run froze groups of {REGION}"):
            act()
    assert scaling(aws, recorded={"region": REGION}).thaw()["evidence"] == {"thawed": 1}


def test_a_thaw_in_another_account_than_the_freeze_is_refused(aws: Any, url: str) -> None:
    make(aws, "web")
    frozen = scaling(aws, "web")
    recorded = frozen.ready()["before"]
    frozen.freeze()
    sts = boto3.client("sts", region_name=REGION, endpoint_url=url)
    role = sts.assume_role(RoleArn="arn:aws:iam::210987654321:role/hub", RoleSessionName="hub")["Credentials"]
    keys = {"aws_access_key_id": role["AccessKeyId"], "aws_secret_access_key": role["SecretAccessKey"]}
    there = boto3.client(
        "autoscaling", region_name=REGION, endpoint_url=url, aws_session_token=role["SessionToken"], **keys
    )
    elsewhere = replace(scaling(aws, "web", recorded=recorded), client=there)
    with pytest.raises(BalikError, match=f"found one without any group in {REGION}, and this run froze groups of 1234"):
        elsewhere.thaw()
    there.create_launch_configuration(
        LaunchConfigurationName="web", ImageId="ami-12345678", InstanceType="t3.micro", SecurityGroups=[]
    )
    make(there, "web")
    acts = (elsewhere.ready, elsewhere.freeze, elsewhere.verify_frozen, elsewhere.ready_to_thaw)
    for act in (*acts, elsewhere.thaw, elsewhere.verify_thawed):
        with pytest.raises(BalikError, match=f"found 210987654321 in {REGION}, and this run froze groups of 123456789"):
            act()
    assert scaling(aws, recorded=recorded).thaw()["evidence"] == {"thawed": 1}


def test_a_tag_that_was_taken_away_is_made_up_for_by_the_record(aws: Any) -> None:
    make(aws, "web")
    make(aws, "worker", suspended=("ScheduledActions",))
    make(aws, "still", suspended=("AlarmNotification", "ScheduledActions"))
    names, before = ("web", "worker", "still"), groups(aws)
    recorded = scaling(aws, *names).ready()["before"]
    it = scaling(aws, *names, recorded=recorded)

    def lose(name: str) -> None:
        aws.delete_tags(Tags=[{"ResourceId": name, "ResourceType": "auto-scaling-group", "Key": NOTE}])

    it.freeze()
    it.verify_frozen()
    frozen = groups(aws)
    lose("web")
    with pytest.raises(BalikError, match=r"web: its tag balik\.dev/frozen is gone; expected what the freeze wrote"):
        it.verify_frozen()
    assert it.ready()["before"] == recorded
    assert "; suspended already, and stays so after the thaw: web, still" in scaling(aws, *names).ready()["says"]
    assert it.freeze()["changed"] is True
    assert groups(aws) == frozen
    # And with no freeze in between; what somebody resumed meanwhile needs nothing.
    lose("web")
    lose("worker")
    aws.resume_processes(AutoScalingGroupName="web", ScalingProcesses=["ScheduledActions"])
    with pytest.raises(BalikError, match="web, worker: still frozen"):
        it.verify_thawed()
    assert it.thaw()["evidence"] == {"thawed": 2}
    it.verify_thawed()
    assert groups(aws) == before


def test_what_aws_refuses_is_told_with_what_to_do(aws: Any) -> None:
    _client, errors = session(REGION, "", "http://127.0.0.1:9")
    it = AutoScaling(_client, errors, REGION, "lawyers-hub", "r1", ["web"])
    with pytest.raises(BalikError, match=r"Auto Scaling in ap-southeast-3: describe_auto_scaling_groups was refused"):
        it.ready()


def test_no_region_is_said(aws: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(BalikError, match="scale_freeze_aws_region: no client"):
        session("", "", "")
