"""The options by which a place of backups is reached; module_utils/backups/places.py has their types."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  golive:
    description:
      - When the release went live, in ISO 8601 with a time zone; needed when the place is a pattern.
      - A backup whose manifest says that it was not taken before is refused, also where it is named itself.
    type: str
    default: ""
  ssh_options:
    description: More arguments of C(ssh) and C(sftp), such as C(-i) and a key's path.
    type: list
    elements: str
    default: []
  s3:
    description: How the bucket is reached, where boto3's own chain does not say it.
    type: dict
    default: {}
    suboptions:
      endpoint_url:
        description: Of what is not AWS, such as MinIO.
        type: str
      region:
        description: The region.
        type: str
      access_key:
        description: The key's id.
        type: str
      secret_key:
        description: The key.
        type: str
      session_token:
        description: Of temporary credentials.
        type: str
"""
