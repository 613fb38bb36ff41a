"""Makes columns/: one table in every columnar format, and columns/rows.json, what pyarrow reads of it.

    python make_data.py     # pip install datasets (pyarrow with it)
"""

import json
import pathlib
import shutil

import datasets
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

out = pathlib.Path(__file__).parent / "columns"
shutil.rmtree(out, ignore_errors=True)
out.mkdir()
rows = [
    {"question": "Wie viele?\n\"x\"", "choices": {"text": ["a", "é", ""], "label": ["A", "B", "C"]}, "label": 2, "score": 0.5, "yes": True, "word": "one"},
    {"question": "", "choices": {"text": [], "label": []}, "label": -1, "score": 1e-300, "yes": False, "word": "two"},
    {"question": None, "choices": None, "label": 9007199254740993, "score": None, "yes": None, "word": "one"},
]
schema = pa.schema(
    [
        ("question", pa.string()),
        ("choices", pa.struct([("text", pa.list_(pa.large_string())), ("label", pa.large_list(pa.string()))])),
        ("label", pa.int64()),
        ("score", pa.float64()),
        ("yes", pa.bool_()),
        ("word", pa.dictionary(pa.int8(), pa.string())),
    ]
)
table = pa.Table.from_pylist(rows, schema)
table = pa.concat_tables([table.slice(0, 2), table.slice(2)])
(out / "rows.json").write_text(json.dumps(table.to_pylist(), ensure_ascii=False), encoding="utf-8")
for codec in ["snappy", "zstd", "gzip", "none"]:
    pq.write_table(table, out / f"{codec}.parquet", compression=codec, row_group_size=2)
with pa.ipc.new_stream(out / "stream.arrow", schema) as writer:
    writer.write_table(table, max_chunksize=2)
with pa.ipc.new_file(out / "file.arrow", schema) as writer:
    writer.write_table(table, max_chunksize=2)
kinds = pa.table({"when": pa.array([0], pa.timestamp("ms"))})
pq.write_table(kinds, out / "timestamp.parquet", compression="none")

split = lambda words: datasets.Dataset.from_list([{"question": w, "answer": [w, w + w]} for w in words])
saved = datasets.DatasetDict({"train": split("ab"), "validation": split("cde"), "test": split("f")})
saved.save_to_disk(out / "saved")
