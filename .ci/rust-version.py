"""Is `rust-version` true? The highest that any dependency of a feature set asks for, beside what is promised for it."""

import json
import re
import subprocess
import sys

# Feature set of the package `recua` (without defaults), and the Rust that Cargo.toml and the README promise for it.
PROMISED = {"cli,flex": "1.92", "cli,ndarray,wgpu,cuda,nccl,fusion,tui,mpi": "1.92", "cli,flex,data,ballista": "1.94"}


def run(*args: str) -> str:
    return subprocess.run(["cargo", *args], check=True, capture_output=True, text=True).stdout


def key(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in (version + ".0.0").split(".")[:3])


packages = json.loads(run("metadata", "--format-version", "1", "--locked", "--all-features"))["packages"]
needs = {(p["name"], p["version"]): p["rust_version"] for p in packages if p["rust_version"]}
failed = False
for features, promised in PROMISED.items():
    tree = run("tree", "--locked", "-p", "recua", "--no-default-features", "--features", features, "-e", "normal,build", "--prefix", "none", "--format", "{p}")
    used = set(re.findall(r"^(\S+) v(\S+)", tree, flags=re.M))
    version, name = max(((needs[p], p[0]) for p in used if p in needs and not p[0].startswith("recua")), key=lambda x: key(x[0]))
    good = key(version) <= key(promised)
    failed |= not good
    print(f"{features}: {name} needs Rust {version}, promised is {promised}{'' if good else ': WRONG'}")
sys.exit(failed)
