"""What `mutmut run` found, in one line: `python -m tests.mutants`. Status 1 when the tests notice too little."""

import json
import subprocess
import sys
from pathlib import Path

MUST_KILL = 0.9


def main() -> None:
    subprocess.run(
        [sys.executable, "-m", "mutmut", "export-cicd-stats"], check=True, stdout=subprocess.DEVNULL
    )
    told = json.loads(Path("mutants/mutmut-cicd-stats.json").read_text())
    killed = told["killed"] + told["timeout"] + told["segfault"]
    ran = killed + told["survived"] + told["suspicious"] + told["no_tests"]
    print(
        f"{killed} of {ran} mutants killed ({killed / ran:.1%}), of {told['total']}; must be {MUST_KILL:.0%}"
    )
    sys.exit(killed / ran < MUST_KILL)


if __name__ == "__main__":
    main()
