"""AWS Auto Scaling groups held still: their alarms and schedules are suspended, and resumed exactly as far.

``Launch`` and ``Terminate`` go on: a group whose ``Launch`` is suspended shrinks whenever an instance dies. What was
suspended here stands in a tag of the group, written before the suspension and removed after the resumption, so that
what was suspended before stays so, and a run that was killed in between is finished by the next. Where the tag is gone,
the run's record knows it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BalikError

PROCESSES = ("AlarmNotification", "ScheduledActions")
NOTE = "balik.dev/frozen"
"""Tag of a frozen group: product, run, and the processes that the freeze suspended, between blanks."""

Result = dict[str, Any]
Group = Mapping[str, Any]


@dataclass(frozen=True)
class AutoScaling:
    """The Auto Scaling groups of one region.

    :param client: ``boto3.client("autoscaling")``, or what has its methods.
    :param error: the base of what it raises.
    :param region: for messages.
    :param names: the groups by name.
    :param tags: or all groups that carry these tags.
    :param recorded: what the record has of this run's freeze: ``before`` of :meth:`ready`; empty where there was none.
    """

    client: Any
    error: type[Exception] | tuple[type[Exception], ...]
    region: str
    product: str
    run: str
    names: Sequence[str] = ()
    tags: Mapping[str, str] | None = None
    dry: bool = False
    recorded: Mapping[str, Any] = field(default_factory=dict)

    def ready(self) -> Result:
        """Finds the groups; ``before`` holds what the freeze would replace."""
        groups = self._chosen()
        before = {_name(group): self._ours(group) or _to_suspend(group) for group in groups}
        resting = [group for group in groups if not before[_name(group)]]
        stay = f"; suspended already, and stays so after the thaw: {_named(resting)}" if resting else ""
        return {
            "changed": False,
            "before": {"suspends": before, "region": self.region, "account": _account(groups[0])},
            "says": f"{_groups(groups)} can be frozen in {self.region}{stay}",
        }

    def ready_to_thaw(self) -> Result:
        """Finds what is frozen; ``before`` names it, so that an undo can freeze it again."""
        groups = self._frozen()
        says = f"{_groups(groups)} can be thawed" if groups else f"no Auto Scaling group is frozen in {self.region}"
        return {"changed": False, "before": {"frozen": [_name(group) for group in groups]}, "says": says}

    def freeze(self, only: Iterable[str] | None = None) -> Result:
        """Suspends what scales the chosen groups.

        :param only: just these, by name; those that are gone are left out.
        """
        groups = (
            self._chosen() if only is None else [one for one in self._all_of_the_record() if _name(one) in set(only)]
        )
        moving = [group for group in groups if self._moves(group)]
        if not self.dry:
            for group in moving:
                name, processes, ours = _name(group), _to_suspend(group), self._ours(group)
                # What an earlier call has begun to suspend is this freeze's own.
                noted = [*ours, *(each for each in processes if each not in ours)]
                self._call("create_or_update_tags", Tags=[self._tag(name, " ".join([self.product, self.run, *noted]))])
                if processes:
                    self._call("suspend_processes", AutoScalingGroupName=name, ScalingProcesses=processes)
        says = f"{_groups(groups)} {'would be held' if self.dry else 'held'} still in {self.region}"
        return {"changed": bool(moving), "says": says, "evidence": {"frozen": len(groups)}}

    def verify_frozen(self) -> Result:
        groups = self._chosen()
        if moving := [group for group in groups if _to_suspend(group)]:
            raise BalikError(_named(moving), f"still scaled by {' and '.join(PROCESSES)}", "both suspended")
        if lost := [group for group in groups if self._moves(group)]:
            raise BalikError(
                _named(lost), f"its tag {NOTE} is gone", "what the freeze wrote", "Run again: it comes back."
            )
        return {"changed": False, "says": f"{_groups(groups)} held still", "evidence": {"frozen": len(groups)}}

    def thaw(self) -> Result:
        """Resumes what the freeze of this product has suspended, and nothing else."""
        groups = self._frozen()
        if not self.dry:
            for group in groups:
                name = _name(group)
                if processes := self._ours(group):
                    self._call("resume_processes", AutoScalingGroupName=name, ScalingProcesses=processes)
                if NOTE in _tags(group):
                    self._call("delete_tags", Tags=[self._tag(name)])
        says = f"{_groups(groups)} {'would be scaled' if self.dry else 'scaled'} again in {self.region}"
        return {
            "changed": bool(groups),
            "says": says if groups else f"no Auto Scaling group is frozen in {self.region}",
            "evidence": {"thawed": len(groups)},
        }

    def verify_thawed(self) -> Result:
        if groups := self._frozen():
            raise BalikError(_named(groups), "still frozen", "to be scaled again", "Run scale-thaw again.")
        return {"changed": False, "says": f"no Auto Scaling group of {self.product} is frozen", "evidence": {}}

    def _chosen(self) -> list[Group]:
        """:raises BalikError: a named group is not there, no group carries the tags, or another product holds one."""
        wanted, groups = dict(self.tags or {}), self._all_of_the_record()
        if not self.names and not wanted:
            raise BalikError("scale_freeze_aws_groups", "names no group (and scale_freeze_aws_tags no tag)", "one")
        found = [
            group
            for group in groups
            if _name(group) in self.names or (wanted and wanted.items() <= _tags(group).items())
        ]
        names = {_name(group) for group in found}
        if missing := [name for name in self.names if name not in names]:
            raise BalikError(
                f"Auto Scaling groups {', '.join(missing)}",
                f"not in {self.region}, which has {_named(groups) if groups else 'none'}",
                do="Correct scale_freeze_aws_groups or scale_freeze_aws_region, or use another account's credentials.",
            )
        if not found:
            carried = ", ".join(f"{key}={value}" for key, value in wanted.items())
            raise BalikError(
                f"Auto Scaling groups with {carried}", f"none in {self.region}", do="Correct scale_freeze_aws_tags."
            )
        if foreign := [group for group in found if _holder(group) not in ("", self.product)]:
            holders = sorted({_holder(group) for group in foreign})
            raise BalikError(
                f"Auto Scaling groups {_named(foreign)}",
                f"frozen by the rollback of {', '.join(holders)}",
                do="Let that end first.",
            )
        return found

    def _frozen(self) -> list[Group]:
        """All that this product's freeze holds, by tag or, where that is gone, by the record."""
        groups = self._all_of_the_record()
        return [one for one in groups if _holder(one) == self.product or (not _holder(one) and self._ours(one))]

    def _ours(self, group: Group) -> list[str]:
        """The processes that this freeze has suspended, or was about to: by the tag; where that is gone, those of the
        record that are suspended still."""
        recorded = (self.recorded.get("suspends") or {}).get(_name(group), [])
        if noted := _noted(group):
            return noted
        return [process for process in recorded if process not in _to_suspend(group)]

    def _moves(self, group: Group) -> bool:
        """Whether a freeze has something to do: suspend what scales it, or write the tag anew."""
        return bool(_to_suspend(group)) or (not _noted(group) and bool(self._ours(group)))

    def _all_of_the_record(self) -> list[Group]:
        """All groups.

        :raises BalikError: the record's freeze was in another region or account: what it holds would be left so.
        """
        region, account = (str(self.recorded.get(key) or "") for key in ("region", "account"))
        if region not in ("", self.region):
            raise BalikError(
                "scale_freeze_aws_region",
                f"found {self.region}, and this run froze groups of {region}",
                region,
                "Run again with the region of the freeze.",
            )
        groups = self._all()
        here = _account(groups[0]) if groups else "one without any group"
        if account not in ("", here):
            raise BalikError(
                "The account of AWS",
                f"found {here} in {self.region}, and this run froze groups of {account}",
                account,
                "Run again with its credentials (scale_freeze_aws_profile).",
            )
        return groups

    def _all(self) -> list[Group]:
        groups: list[Group] = []
        token: dict[str, str] = {}
        while True:
            page = self._call("describe_auto_scaling_groups", **token)
            groups += page["AutoScalingGroups"]
            if not page.get("NextToken"):
                return groups
            token = {"NextToken": page["NextToken"]}

    def _call(self, name: str, **arguments: Any) -> Any:
        try:
            return getattr(self.client, name)(**arguments)
        except self.error as error:
            group = arguments.get("AutoScalingGroupName") or (arguments.get("Tags") or [{}])[0].get("ResourceId")
            where = f"Auto Scaling group {group}" if group else f"Auto Scaling in {self.region}"
            raise BalikError(
                where,
                f"{name} was refused: {error}",
                do="The permissions needed stand in roles/scale-freeze/files/iam.json. Mend that and run again: "
                "it goes on where it stopped.",
            ) from error

    @staticmethod
    def _tag(group: str, value: str | None = None) -> dict[str, Any]:
        tag = {"ResourceId": group, "ResourceType": "auto-scaling-group", "Key": NOTE}
        return tag if value is None else {**tag, "Value": value, "PropagateAtLaunch": False}


def session(region: str, profile: str, endpoint: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """A client for Auto Scaling, and what it raises. Credentials come from where AWS's tools look for them.

    :raises BalikError: boto3 is missing, or no region is known.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise BalikError(
            "boto3", f"cannot be loaded: {error}", do="Install Debian's python3-boto3, or pip's boto3."
        ) from error
    limits = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 4})
    try:
        found = boto3.Session(profile_name=profile or None, region_name=region or None)
        client = found.client("autoscaling", endpoint_url=endpoint or None, config=limits)
    except BotoCoreError as error:
        raise BalikError(
            "scale_freeze_aws_region", f"no client: {error}", "a region (and a profile that exists)"
        ) from error
    return client, (BotoCoreError, ClientError)


def _name(group: Group) -> str:
    return str(group["AutoScalingGroupName"])


def _account(group: Group) -> str:
    """The number of the account that has it: ``arn:aws:autoscaling:REGION:ACCOUNT:…``."""
    return str(group["AutoScalingGroupARN"]).split(":")[4]


def _tags(group: Group) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in group.get("Tags", [])}


def _holder(group: Group) -> str:
    """The product whose rollback holds it; empty where none does."""
    return _tags(group).get(NOTE, "").split(" ")[0]


def _noted(group: Group) -> list[str]:
    """The processes that a freeze has suspended, or was about to."""
    return _tags(group).get(NOTE, "").split(" ")[2:]


def _to_suspend(group: Group) -> list[str]:
    suspended = {each["ProcessName"] for each in group.get("SuspendedProcesses", [])}
    return [process for process in PROCESSES if process not in suspended]


def _groups(groups: Sequence[Group]) -> str:
    return f"{len(groups)} Auto Scaling group{'s' if len(groups) != 1 else ''} ({_named(groups)})"


def _named(groups: Sequence[Group]) -> str:
    names = [_name(group) for group in groups]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
