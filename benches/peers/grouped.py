#!/usr/bin/env python3
"""A peer with grouped queries: grouped.py KV_HEADS SCRIPT.py ARGS... runs the script, unaltered, with that many key/value heads in
transformers' LlamaConfig (train_torch.py itself has as many as query heads)."""
import runpy, sys
import transformers
heads, script, *args = sys.argv[1:]
plain = transformers.LlamaConfig
transformers.LlamaConfig = lambda **named: plain(**{**named, "num_key_value_heads": int(heads)})
sys.argv = [script, *args]
runpy.run_path(script, run_name="__main__")
