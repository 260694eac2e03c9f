"""The options by which a module reaches a PostgreSQL server; module_utils/database/arguments.py has their types."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  login_host:
    description: Host, or folder of the socket; empty for libpq's default.
    type: str
    default: ""
  login_port:
    description: Port; 0 for libpq's default.
    type: int
    default: 0
  login_user:
    description: The role; empty for libpq's default.
    type: str
    default: ""
  login_password:
    description: Its password. It reaches the programs by their environment.
    type: str
    default: ""
  ssl_mode:
    description: libpq's C(sslmode).
    type: str
    default: ""
  ca_cert:
    description: libpq's C(sslrootcert).
    type: str
    default: ""
  maintenance_database:
    description: A database that is always there, to be connected to while others are made, renamed and dropped.
    type: str
    default: postgres
  bin_dir:
    description: Folder of the client programs, where they are in no usual place.
    type: str
    default: ""
"""
