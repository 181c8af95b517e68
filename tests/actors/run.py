#!/usr/bin/env python3
"""Acts one scenario in network namespaces that exist already, or lists them all.

run.py --list
run.py NAME VARIANT ROLE=NAMESPACE,V4,V6 ...       with the roles client, server and router
"""

import json
import os
import sys
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from hosts import Host, Net, Skip
from scenario import SCENARIOS
import closing, clean, firewall, forged, killed, refused, servers, timeouts, unknown  # noqa: F401: they enter their scenarios

SKIPPED = 77  # exit code: this machine cannot act the scenario


def main(arguments):
    if arguments == ["--list"]:
        listed = [{key: value for key, value in entry.items() if key != "act"} | {"name": name} for name, entry in SCENARIOS.items()]
        print(json.dumps(listed))
        return 0
    name, variant, *roles = arguments
    hosts = {role: Host(*rest.split(",")) for role, rest in (each.split("=", 1) for each in roles)}
    net = Net(variant, hosts["client"], hosts["server"], hosts.get("router"))
    try:
        SCENARIOS[name]["act"](net)
    except Skip as skip:
        print(skip, file=sys.stderr)
        return SKIPPED
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
