"""Do the paths and tests that docs/paper.md names exist?"""

import re
import subprocess
import sys
from pathlib import Path

files = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split()
names = {Path(file).name for file in files}
folders = {str(parent) for file in files for parent in Path(file).parents}
tests = {t for f in files if f.endswith(".rs") for t in re.findall(r"#\[test\]\s(?:\s*#\[[^\n]*\]\s)*\s*fn (\w+)", Path(f).read_text())}
missing = []
for row in Path("docs/paper.md").read_text().splitlines():
    cells = row.split(" | ") if row.startswith("| ") else []
    for column, is_there in [(1, lambda x: x in files or x.rstrip("/") in folders or x in names), (2, lambda x: x in tests)]:
        quoted = re.findall(r"`([^`]+)`", cells[column]) if len(cells) > column else []
        wanted = [x for x in quoted if (column == 1 and re.search(r"[/]|\.toml$|\.rs$", x)) or (column == 2 and re.fullmatch(r"\w+", x))]
        missing += [f"{x}: not {['', 'in the repository', 'a test'][column]}" for x in wanted if not is_there(x)]
print("\n".join(missing) or "docs/paper.md: every path and test is there")
sys.exit(bool(missing))
