"""How each documented command is run, and which are not: `python -m tests.docs.commands` lists those, with the reason.

A command that is in neither table is run as it stands.
"""

from tests.docs.documented import Block, commands

QUESTION = "At what temperature does the Icehouse keep the seed vault?"
SAID_TO_MCP = (
    '{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", '
    '"capabilities": {}, "clientInfo": {"name": "docs", "version": "1"}}}'
)
WITH_RECEIPT = (
    'curl -sD headers "$URL/v1/chat/completions" -H "Authorization: Bearer $STRONGROOM_KEY" -H "Content-Type: '
    'application/json" -H "x-strongroom-retention: none" -d \'{"model": "rag", "messages": [{"role": "user", '
    f'"content": "{QUESTION}"}}]}}\''
)

AS_RUN = {
    "strongroom add FOLDER --collection manuals": "strongroom add folder --collection manuals",
    'strongroom ask "…" --collection manuals': f'strongroom ask "{QUESTION}" --collection manuals',
    "strongroom add PATH… --collection C": "strongroom add folder questions.jsonl --collection more",
    "strongroom sources add URL --collection C --every 5m": (
        'strongroom sources add "file://$PWD/folder" --collection watched --every 5m'
    ),
    "strongroom collections rebuild C --embedding-model M": (
        "strongroom collections rebuild samples --embedding-model all-MiniLM-L6-v2"
    ),
    "strongroom collections status C": "strongroom collections status samples",
    "strongroom collections remove C": (
        "strongroom add folder --collection old && strongroom collections remove old"
    ),
    "strongroom eval calibrate QUESTIONS.jsonl --collection C": (
        "strongroom eval calibrate questions.jsonl --collection samples"
    ),
    "strongroom eval retrieval FOLDER --ingest": "strongroom eval retrieval beir --ingest",
    "strongroom eval answers QUESTIONS.jsonl": "strongroom eval answers few.jsonl --collection samples",
    "strongroom eval answers SET.jsonl --collection C": "strongroom eval answers few.jsonl --collection samples",
    "strongroom eval draw --collection C": "strongroom eval draw --collection samples --count 1",
    "strongroom eval compare A B": (
        "for run in a b; do strongroom eval retrieval beir --ingest --name $run; done\n"
        "strongroom eval compare data/evaluations/*-a data/evaluations/*-b"
    ),
    "strongroom mcp --key-file FILE": (
        f"echo '{SAID_TO_MCP}' | strongroom mcp --key-file data/keys/admin.key | grep serverInfo"
    ),
    "strongroom bench": "strongroom bench --seconds 0.5 --documents 2 --most 2",
    "strongroom ask QUESTION --collection C": f'strongroom ask "{QUESTION}" --collection samples',
    "strongroom chat": f'echo "{QUESTION}" | strongroom chat',
    "strongroom search QUERY --collection C --explain": (
        "strongroom search Icehouse --collection samples --explain"
    ),
    "strongroom jobs retry --collection C": "strongroom jobs retry --collection samples",
    "strongroom jobs cancel --collection C": "strongroom jobs cancel --collection samples",
    "strongroom keys add NAME --role writer": "strongroom keys add archivist --role writer",
    "strongroom keys rotate ID": 'strongroom keys rotate "$ID"',
    "strongroom keys expire ID": 'strongroom keys expire "$ID"',
    "strongroom keys revoke ID": 'strongroom keys revoke "$ID"',
    "strongroom keys quotas --tenant NAME": "strongroom keys quotas --tenant default --requests-per-minute 100000",
    "strongroom backup ARCHIVE": "strongroom backup all.strongroom",
    "strongroom restore ARCHIVE --data-dir EMPTY": (
        "strongroom backup again.strongroom\n"
        "mkdir -p empty/keys && cp data/keys/master.key empty/keys/\n"
        "strongroom restore again.strongroom --data-dir empty"
    ),
    "strongroom audit verify [--checkpoint FILE]": (
        "strongroom audit checkpoint > checkpoint && strongroom audit verify --checkpoint checkpoint"
    ),
    "strongroom audit export [--since T] [--about TEXT]": (
        f'strongroom audit export --since 2026-01-01 --about "{QUESTION}"'
    ),
    "strongroom audit prune --days N": "strongroom audit prune --days 30",
    "strongroom retention set none --key ID": 'strongroom retention set none --key "$ID"',
    "strongroom retention set none --tenant NAME": (
        "strongroom retention set none --tenant default && strongroom retention set usual --tenant default"
    ),
    "strongroom retention verify RECEIPT": (
        f"{WITH_RECEIPT} > answer\n"
        "strongroom retention verify $(sed -n 's/^x-strongroom-receipt: *//p' headers | tr -d '\\r')"
    ),
    "strongroom --install-completion": "strongroom --install-completion && test -s .bashrc",
    "strongroom keys": "strongroom keys --help",
    "strongroom eval": "strongroom eval --help",
}

_PART_OF_THE_STACK = "the stack that all others are run against has it"
_BUILDS = "installs and writes into this tree, which is set up already"
_ALL = "runs for minutes or hours; the suite has shorter forms of it"
_PULLS = "goes to a hub; tests/app/test_pulling.py has one on this machine"

NOT_RUN = {
    "make run": "sets up what is set up; the stack runs the command that it ends with",
    "make setup": _BUILDS,
    "make console": _BUILDS,
    "make test-clients": _BUILDS,
    "make docs-check": "runs this",
    "make release-check": "builds a wheel and an environment; its own test looks into the wheel",
    "make test": _ALL,
    "make test-fast": _ALL,
    "make bench": _ALL,
    "make egress": _ALL,
    "make faults": _ALL,
    "make faults SHARE=0.02": _ALL,
    "make fuzz": _ALL,
    "make mutants": _ALL,
    "python -m tests.faults.backends --times 50": _ALL,
    "python -m tests.faults.clocks": _ALL,
    "python -m tests.faults.database": _ALL,
    "python -m tests.faults.departures": _ALL,
    "python -m tests.faults.storm --kills 200 --errors 100": _ALL,
    "python -m tests.faults.kills": _ALL,
    "python -m tests.faults.bit_rot --times 1000": _ALL,
    "python -m tests.bench [--quick] [--only NAME ...]": _ALL,
    "python -m tests.bench.encryption": _ALL,
    "python -m tests.bench.peers.install": _BUILDS,
    "python -m tests.contracts.coverage": "reads OpenAI's document, which is not part of this tree",
    "pip install strongroom[sources-s3]": "needs a package index that has Strongroom",
    "strongroom serve": _PART_OF_THE_STACK,
    "strongroom serve --samples FOLDER": _PART_OF_THE_STACK,
    "strongroom api": _PART_OF_THE_STACK,
    "strongroom worker": _PART_OF_THE_STACK,
    "strongroom models": _PART_OF_THE_STACK,
    "strongroom models pull": _PULLS,
    "strongroom models pull OWNER/MODEL": _PULLS,
    "strongroom audit restart FILE": "is for a log that does not verify; tests/app/test_audit.py has one",
    "docker compose config --resolve-image-digests": "needs a container engine and its registries",
    "docker compose --profile observability": (
        "needs a container engine; tests/end_to_end/test_compose.py runs the services as processes"
    ),
}


def tried_elsewhere(block: Block) -> bool:
    """The clients' examples need the clients, and are run by tests/clients/test_readme_examples.py."""
    return block.section == "Clients"


if __name__ == "__main__":
    for command in commands():
        if command in NOT_RUN:
            print(f"not run: {command}: {NOT_RUN[command]}")
    print("not run here: the examples of README's section Clients: `make test` runs them, in tests/clients")
