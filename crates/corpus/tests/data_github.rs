//! GitHub: projects, licences, headers, filters. Rules: LLaMA 2.1; RedPajama `rp_v1` `data_prep/github`.

use std::{fs, io::Write, path::Path, sync::Arc};

use crate::data_stackexchange::{inputs, mutate};
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::sources::Skipped;
use recua_corpus::sources::github::{
    Options, ReadOptions, Shape, clean, clean_with, content_key, count_pieces, is_source, is_source_redpajama,
    licence::{self, Detected},
    read, strip_header, strip_header_redpajama,
};
use recua_corpus::{Record, Rejected};

const MIT: &str = "The MIT License (MIT)\n\nCopyright (c) 2020 A. Person\n\nPermission is hereby granted, free of charge, to any person \
obtaining a copy\nof this software and associated documentation files (the \"Software\"), to deal\nin the Software without restriction, \
including without limitation the rights\nto use, copy, modify, merge, publish, distribute, sublicense, and/or sell\ncopies of the Software, \
and to permit persons to whom the Software is furnished to do so, subject to the following conditions:\n\nThe above copyright notice and this \
permission notice shall be included in all copies.\n\nTHE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED.\n";
const BSD2: &str = "Copyright 2020 A. Person\n\nRedistribution and use in source and binary forms, with or without\nmodification, are permitted \
provided that the following conditions are met:\n\n1. Redistributions of source code must retain the above copyright notice, this\n   list of \
conditions and the following disclaimer.\n2. Redistributions in binary form must reproduce the above copyright notice, ...\n";
const BSD3_CLAUSE: &str = "3. Neither the name of the copyright holder nor the names of its contributors\n   may be used to endorse or promote \
products derived from this software.\n";
const BSD4_CLAUSE: &str = "3. All advertising materials mentioning features or use of this software\n   must display the following acknowledgement: \
This product includes software\n   developed by A. Person.\n";
const APACHE: &str = "                                 Apache License\n                           Version 2.0, January 2004\n                        \
http://www.apache.org/licenses/\n\n   TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION\n\n   1. Definitions.\n";
const GPL: &str = "GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007\n\n Everyone is permitted to copy and distribute \
verbatim copies\n of this license document, but changing it is not allowed.\n";

#[test]
fn expressions_are_satisfied_or_not() {
    #[rustfmt::skip]
    let allowed = [
        "MIT", "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "MIT OR Apache-2.0", "MIT/Apache-2.0", "Unlicense OR MIT",
        "GPL-3.0 OR MIT", "MIT AND Apache-2.0", "(MIT OR GPL-2.0) AND BSD-3-Clause", "Apache-2.0 WITH LLVM-exception",
        "Apache License 2.0", "The  MIT License", "BSD", "MIT AND (Apache-2.0 OR Zlib)", "0BSD",
    ];
    for expression in allowed {
        assert!(licence::is_allowed(expression), "{expression}");
    }
    #[rustfmt::skip]
    let denied = [
        "", "GPL-3.0", "gpl-2.0", "agpl-3.0", "mpl-2.0", "lgpl-2.1", "epl-1.0", "cc0-1.0", "unlicense", "isc", "artistic-2.0",
        "MIT AND GPL-3.0", "BSD-4-Clause", "GPL-2.0 WITH Classpath-exception-2.0", "MIT WITH GPL", "MIT OR", "(MIT", "MIT)",
        "OR MIT", "MIT Apache-2.0", "SEE LICENSE IN LICENSE", "MIT AND (GPL-2.0 OR MPL-2.0)", "UNLICENSED", "JSON",
    ];
    for expression in denied {
        assert!(!licence::is_allowed(expression), "{expression}");
    }
    // Nesting is bounded.
    assert!(!licence::is_allowed(&format!("{}MIT{}", "(".repeat(400), ")".repeat(400))));
}

#[test]
fn texts_are_told_apart() {
    let cases = [
        (MIT.to_owned(), Detected::Mit),
        (MIT.to_uppercase().replace(' ', "\n * "), Detected::Mit),
        (BSD2.to_owned(), Detected::Bsd2),
        (format!("{BSD2}{BSD3_CLAUSE}"), Detected::Bsd3),
        (format!("{BSD2}{BSD4_CLAUSE}{BSD3_CLAUSE}"), Detected::Denied("BSD-4-Clause")),
        (APACHE.to_owned(), Detected::Apache2),
        (
            "Licensed under the Apache License, Version 2.0 (the \"License\"); you may not use this file except in compliance with the License.".into(),
            Detected::Apache2,
        ),
        (GPL.to_owned(), Detected::Denied("GPL")),
        (format!("GNU AFFERO GENERAL PUBLIC LICENSE\n{}", &GPL[26..]), Detected::Denied("AGPL")),
        (format!("{MIT}\n\n{GPL}"), Detected::Denied("GPL")),
        ("Mozilla Public License Version 2.0\n 1.12 \"Secondary License\" means the GNU General Public License, Version 2.0".into(), Detected::Denied("MPL")),
        (format!("{MIT}\nThe Software shall be used for Good, not Evil.\n"), Detected::Denied("JSON")),
        (format!("\"Commons Clause\" License Condition v1.0\n{MIT}"), Detected::Denied("Commons-Clause")),
        (MIT.replace("merge, publish, ", ""), Detected::Unknown),
        ("This project is licensed under the MIT license.".into(), Detected::Unknown),
        (String::new(), Detected::Unknown),
    ];
    for (text, expected) in cases {
        assert_eq!(licence::detect(&text), expected, "{text}");
    }
}

#[test]
fn a_folder_is_judged_by_manifest_and_texts() {
    use Detected::{Apache2, Denied, Mit, Unknown};
    let judge = |expression, files: &[Detected]| licence::judge(expression, files);
    assert_eq!(judge(None, &[Mit]).as_deref(), Some("MIT"));
    assert_eq!(judge(None, &[Mit, Apache2, Unknown, Mit]).as_deref(), Some("Apache-2.0 OR MIT"));
    assert_eq!(judge(None, &[]), None);
    assert_eq!(judge(None, &[Unknown]), None);
    assert_eq!(judge(None, &[Mit, Denied("GPL")]), None);
    assert_eq!(judge(Some("MIT OR Apache-2.0"), &[]).as_deref(), Some("MIT OR Apache-2.0"));
    assert_eq!(judge(Some("MIT"), &[Denied("GPL")]), None);
    // The expression names the other licence: it is a choice.
    assert_eq!(judge(Some("MIT OR LGPL-2.1"), &[Mit, Denied("LGPL")]).as_deref(), Some("MIT OR LGPL-2.1"));
    assert_eq!(judge(Some("GPL-3.0"), &[Mit]), None);
}

#[test]
fn licence_files_are_known_by_name() {
    for name in [
        "LICENSE",
        "LICENCE",
        "license.md",
        "LICENSE-MIT",
        "LICENSE-APACHE-2.0",
        "LICENSE.txt",
        "COPYING",
        "COPYING.LESSER",
        "UNLICENSE",
        "MIT-LICENSE",
        "COPYRIGHT",
    ] {
        assert!(licence::is_licence_file(name), "{name}");
    }
    for name in ["license.rs", "licensed.md", "LICENSES_test.go", "copyright.py", "README.md", "license_check.sh", ""] {
        assert!(!licence::is_licence_file(name), "{name}");
    }
}

#[test]
fn manifests_state_their_licence() {
    let cases = [
        ("Cargo.toml", "[package]\nname = \"x\"\nlicense = \"MIT OR Apache-2.0\"\n", Some("MIT OR Apache-2.0")),
        ("Cargo.toml", "[dependencies]\nlicense = \"MIT\"\n", None),
        ("Cargo.toml", "[package]\nlicense-file = \"L\"\nlicense.workspace = true\n", None),
        ("pyproject.toml", "[project]\nlicense = {text = \"MIT\"}\n", Some("MIT")),
        ("package.json", r#"{"license": "ISC"}"#, Some("ISC")),
        ("package.json", r#"{"license": {"type": "MIT", "url": "x"}}"#, Some("MIT")),
        ("composer.json", r#"{"license": ["MIT", "GPL-3.0"]}"#, Some("MIT OR GPL-3.0")),
        ("package.json", "{", None),
        ("go.mod", "module x", None),
    ];
    for (name, text, expected) in cases {
        assert_eq!(licence::manifest_licence(name, text).as_deref(), expected, "{text}");
    }
}

#[test]
fn a_files_own_spdx_line_is_found() {
    assert_eq!(licence::spdx_header("// SPDX-License-Identifier: GPL-2.0\nint x;"), Some("GPL-2.0"));
    assert_eq!(licence::spdx_header("/* SPDX-License-Identifier: (MIT OR GPL-2.0) */\n"), Some("(MIT OR GPL-2.0)"));
    assert_eq!(licence::spdx_header("<!-- SPDX-License-Identifier: MIT -->"), Some("MIT"));
    assert_eq!(licence::spdx_header("SPDX-License-Identifier:\n"), None);
    assert_eq!(licence::spdx_header("grep '// SPDX-License-Identifier: GPL-2.0' x"), None);
}

/// `(path, before, after)`.
const HEADERS: [(&str, &str, &str); 27] = [
    (
        "a.c",
        "/*\n * Copyright (c) 2010 A. Person\n * Licensed under the MIT license\n */\n\n#include <stdio.h>\nint x;\n",
        "#include <stdio.h>\nint x;\n",
    ),
    ("a.c", "#include <stdio.h>\n#define N 1\nint x;\n", "#include <stdio.h>\n#define N 1\nint x;\n"),
    (
        "a.h",
        "#pragma once\n// Copyright 2010 X. All rights reserved.\n// Use of this source code is governed by a BSD-style\n// license that can be found in the LICENSE file.\n\nint x;\n",
        "#pragma once\n\nint x;\n",
    ),
    ("a.h", "#ifndef A_H\n#define A_H\n/* Copyright 2010 X */\nint x;\n#endif\n", "#ifndef A_H\n#define A_H\nint x;\n#endif\n"),
    (
        "a.py",
        "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n# Copyright 2010 X\n# Licensed under the Apache License, Version 2.0\n\nimport os\n",
        "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n\nimport os\n",
    ),
    ("a.py", "#!/bin/sh\n\n# Copyright 2010 X\n\nimport os\n", "#!/bin/sh\n\nimport os\n"),
    (
        "a.rs",
        "// Copyright 2012 The Rust Project Developers. See the COPYRIGHT\n// file at the top-level directory of this distribution.\n//\n// ignore-windows\n\n// The above copyright notice and this permission notice shall be included in all copies.\n\nuse a;\n",
        "use a;\n",
    ),
    (
        "a.rs",
        "// Copyright 2018 A. Person <a@b.c>,\n// C. Person <c@d.e>, and\n// E. Person\n//\n// This work was derived from another one.\nuse a;\n",
        "// This work was derived from another one.\nuse a;\n",
    ),
    ("a.py", "# A module for copyright lines.\nimport os\n", "# A module for copyright lines.\nimport os\n"),
    ("a.py", "\"\"\"\nCopyright 2010 X\nMIT License\n\"\"\"\nimport os\n", "import os\n"),
    (
        "a.py",
        "\"\"\"Reads the settings of a run.\n\nCopyright 2010 X\nMIT License\n\"\"\"\nimport os\n",
        "\"\"\"Reads the settings of a run.\n\"\"\"\nimport os\n",
    ),
    (
        "a.rs",
        "// Copyright 2010 X\n// SPDX-License-Identifier: MIT\n\n//! What this module does.\n\nuse std::fs;\n",
        "//! What this module does.\n\nuse std::fs;\n",
    ),
    ("a.rs", "//! The module's documentation.\n\nuse std::fs;\n", "//! The module's documentation.\n\nuse std::fs;\n"),
    ("a.rs", "// Copyright 2010 X\n//! What it does.\n", "//! What it does.\n"),
    (
        "a.go",
        "// Copyright 2009 The Go Authors. All rights reserved.\n// Use of this source code is governed by a BSD-style\n// license that can be found in the LICENSE file.\n\n//go:build linux\n\n// Package x does things.\npackage x\n",
        "//go:build linux\n\n// Package x does things.\npackage x\n",
    ),
    (
        "A.java",
        "/**\n * Turns one thing into another thing.\n *\n * Copyright 2010 X\n * Licensed under the Apache License, Version 2.0 (the \"License\");\n * you may not use this file.\n *\n * Unless required by applicable law or agreed to in writing, software\n * is distributed on an \"AS IS\" BASIS.\n */\npackage a;\n",
        "/**\n * Turns one thing into another thing.\n */\npackage a;\n",
    ),
    ("A.java", "/* Copyright 2010 X */ package a;\n", " package a;\n"),
    ("a.js", "'use strict';\n/*! jQuery plugin (c) 2010 X | MIT License */\nvar x;\n", "'use strict';\nvar x;\n"),
    ("a.html", "<!DOCTYPE html>\n<!-- Copyright 2010 X -->\n<html></html>\n", "<!DOCTYPE html>\n<html></html>\n"),
    ("a.md", "# License\n\nCopyright 2010 X\n", "# License\n\nCopyright 2010 X\n"),
    (
        "a.lua",
        "--[[\nCopyright 2010 X\n]]\n-- A fine table of all the things.\nreturn {}\n",
        "-- A fine table of all the things.\nreturn {}\n",
    ),
    ("a.sql", "-- Copyright 2010 X\n\nSELECT 1;\n", "SELECT 1;\n"),
    ("a.tex", "% Copyright 2010 X\n\\section{A}\n", "\\section{A}\n"),
    ("Makefile", "# Copyright 2010 X\nall:\n", "all:\n"),
    ("a.c", "/* Copyright 2010 X\n int x;\n", "/* Copyright 2010 X\n int x;\n"),
    ("a.c", "int x;\n/* Copyright 2010 X */\n", "int x;\n/* Copyright 2010 X */\n"),
    ("a.c", "/* Copyright 2010 X */\r\n\r\nint x;\r\n", "int x;\r\n"),
];

#[test]
fn headers_go_and_only_they() {
    for (path, before, after) in HEADERS {
        let (text, removed) = strip_header(before, Some(path));
        assert_eq!(text, after, "{path}: {before}");
        assert_eq!(removed.is_empty(), before == after, "{path}: {before}");
        // What is left has no header.
        assert_eq!(strip_header(&text, Some(path)).0, after, "{path}");
    }
}

#[test]
fn headers_go_where_the_language_is_not_known() {
    for (path, before, after) in HEADERS {
        let (text, _) = strip_header(before, None);
        // The markdown file's heading looks like a comment, and a `%` alone is one of TeX.
        if path != "a.md" {
            assert_eq!(text, after, "{path}: {before}");
        }
    }
    assert_eq!(
        strip_header("#include <a>\n#define COPYRIGHT \"(c) 2010\"\nint x;", None).0,
        "#include <a>\n#define COPYRIGHT \"(c) 2010\"\nint x;"
    );
}

#[test]
fn redpajamas_header_rule_with_its_defects() {
    let cases = [
        // The first block comment wherever it is.
        ("#!/bin/sh\nx\n/* Copyright */y", "#!/bin/sh\nx\ny"),
        ("// a\n/* b */\n/* copyright */", "// a\n/* b */\n/* copyright */"),
        ("/* a */\n// Copyright\nint x;", "/* a */\n// Copyright\nint x;"),
        // Without one, all that begins like a comment.
        ("#!/bin/sh\n#include <a>\n#define B\n\n-- c\n// d\n # e\nf\n# g", " # e\nf\n# g"),
        ("\n\n\nx\n", "x\n"),
        ("# only\n\n", ""),
        ("/* never closed copyright", "/* never closed copyright"),
        ("/*/ Copyright */x", "x"),
        ("x", "x"),
        ("", ""),
    ];
    for (before, after) in cases {
        assert_eq!(strip_header_redpajama(before), after, "{before}");
    }
}

#[test]
fn shapes_are_measured_as_python_does() {
    let shape = Shape::of("ab1\n\r\n  c\u{e9}\u{2028}x\u{c}_");
    // "ab1", "", "  cé", "x", "_"
    assert_eq!(shape, Shape { lines: 5, max_line: 4, chars: 14, alphanumeric: 6, letters: 5 });
    assert_eq!(Shape::of(""), Shape::default());
    assert_eq!(Shape::of("\n\n").lines, 2);
}

#[test]
fn pieces_are_those_of_gpt2() {
    // len(regex.findall(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text))
    let cases = [
        ("", 0),
        ("hello world", 2),
        ("a  b", 3),
        ("a\n b", 3),
        ("a\n\n  b", 3),
        ("x = 0x1F;", 7),
        ("a\nb", 3),
        ("  ", 1),
        ("a ", 2),
        ("\u{e9}t\u{e9} 12", 2),
        ("a\t\tb", 4),
        ("...!", 1),
        (" \n", 1),
    ];
    for (text, expected) in cases {
        assert_eq!(count_pieces(text), expected, "{text:?}");
    }
}

#[test]
fn extensions() {
    for path in ["a/b.c", "a/b.C", "x.PY", "Dockerfile", "a/Makefile", "CMakeLists.txt", "a.kt"] {
        assert!(is_source(path), "{path}");
    }
    for path in ["a/MyDockerfile", "a.json", "b.yaml", "c", ".py", "a.md.txt", "dir.c/file", "a."] {
        assert!(!is_source(path), "{path}");
    }
    for path in ["a/MyDockerfile", ".py", "a.C"] {
        assert!(is_source_redpajama(path), "{path}");
    }
    for path in ["x.PY", "a.kt", "CMakeLists.txt", "a.R"] {
        assert!(!is_source_redpajama(path), "{path}");
    }
}

#[test]
fn files_go_for_their_reason() {
    let code = "fn main() {\n    let value = other_value + something_else;\n}\n".repeat(5);
    let reason =
        |text: &str, path: &str, options: &Options| clean(text, Some(path), options).dropped.map(|reason| reason.to_string());
    let ours = Options::default();
    let theirs = Options { redpajama: true, ..Options::default() };
    let line = |length: usize| format!("{code}{}\n{}", "word ".repeat(length / 5), "short line of text\n".repeat(100));
    let cases: [(&str, String, Option<&str>, Option<&str>); 15] = [
        ("a.rs", code.clone(), None, None),
        ("a.crt", code.clone(), Some("certificate"), Some("certificate")),
        ("LICENSE", code.clone(), Some("licence_text"), Some("licence_text")),
        ("sub/LICENSE.md", code.clone(), Some("licence_text"), None),
        ("a.json", code.clone(), Some("extension"), Some("extension")),
        ("a.rs", String::new(), Some("empty"), Some("empty")),
        ("a.rs", "// Copyright 2010 X\n".into(), Some("empty"), Some("empty")),
        ("a.rs", line(1000), None, None),
        ("a.rs", line(1005), Some("long_line"), Some("long_line")),
        ("a.rs", format!("{}\n", "word ".repeat(22)).repeat(9), Some("long_lines"), Some("long_lines")),
        ("a.rs", "ab {}[]()!!\n".repeat(20), Some("few_alphanumeric"), Some("few_alphanumeric")),
        ("a.rs", "0x12, 0x34, 56, 78\n".repeat(20), Some("few_letters_per_token"), Some("few_letters_per_token")),
        ("a.c", format!("// SPDX-License-Identifier: GPL-2.0\n{code}"), Some("licence"), None),
        ("a.c", format!("/* {GPL} */\n{code}"), Some("licence"), None),
        ("a.kt", code.clone(), None, Some("extension")),
    ];
    for (path, text, expected, expected_theirs) in cases {
        assert_eq!(reason(&text, path, &ours).as_deref(), expected, "{path}: {text}");
        assert_eq!(reason(&text, path, &theirs).as_deref(), expected_theirs, "redpajama {path}: {text}");
    }
    // Without a path, what depends on the name is left out.
    assert_eq!(clean(&code, None, &ours).text, code);
    // What went is told.
    let cleaned = clean(&format!("// Copyright 2010 X\n{code}"), Some("a.rs"), &ours);
    assert_eq!(
        (cleaned.removed.len(), cleaned.removed[0].rule, cleaned.removed[0].text.as_str()),
        (1, "licence_header", "// Copyright 2010 X")
    );
    assert_eq!(cleaned.text, code);
    // The caller's tokens count.
    assert!(clean_with(&code, None, &ours, &|text| text.len()).dropped.as_deref() == Some("few_letters_per_token"));
    let options = Options { extensions: Some(vec![".json".into()]), ..ours };
    assert_eq!(reason(&code, "a.JSON", &options), None);
    assert_eq!(reason(&code, "a.rs", &options).as_deref(), Some("extension"));
}

#[test]
fn copies_have_one_key() {
    assert_eq!(content_key(b"abc"), content_key(b"abc"));
    assert_ne!(content_key(b"abc"), content_key(b"abc "));
    // XXH3-128 of the empty input, as the specification's implementation gives it.
    assert_eq!(content_key(b""), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
}

fn read_all(path: &Path, options: &ReadOptions) -> (Vec<Record>, Vec<Rejected>, Skipped) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let skipped = read(path, options, &mut |record| {
        match record {
            Ok(record) => good.push(record),
            Err(rejected) => bad.push(rejected),
        }
        Ok(())
    });
    (good, bad, skipped.unwrap())
}

fn write(base: &Path, files: &[(&str, &[u8])]) {
    for (name, text) in files {
        let path = base.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn a_tree_is_read_by_projects() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        &[
            ("owner/one/LICENSE", MIT.as_bytes()),
            ("owner/one/src/a.rs", b"fn a() {}"),
            ("owner/one/vendor/gpl/COPYING", GPL.as_bytes()),
            ("owner/one/vendor/gpl/b.c", b"int b;"),
            ("owner/one/vendor/apache/LICENSE", APACHE.as_bytes()),
            ("owner/one/vendor/apache/c.c", b"int c;"),
            ("owner/one/node_modules/d.js", b"d"),
            ("owner/one/.git/config", b"d"),
            ("owner/one/build/CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55"),
            ("owner/one/binary.rs", b"a\0b"),
            ("owner/one/latin1.rs", b"caf\xe9"),
            ("owner/one/big.rs", &[b'x'; 2000]),
            ("owner/two/Cargo.toml", b"[package]\nlicense = \"MIT OR Apache-2.0\"\n"),
            ("owner/two/e.rs", b"e"),
            ("owner/three/Cargo.toml", b"[package]\nlicense = \"GPL-3.0\"\n"),
            ("owner/three/f.rs", b"f"),
            ("nothing/g.rs", b"g"),
        ],
    );
    let options = ReadOptions { max_file: 1500, check_licence: true };
    let (good, bad, skipped) = read_all(folder.path(), &options);
    let ids: Vec<&str> = good.iter().map(|record| record.id.as_str()).collect();
    let expected = [
        "owner/one/LICENSE",
        "owner/one/src/a.rs",
        "owner/one/vendor/apache/LICENSE",
        "owner/one/vendor/apache/c.c",
        "owner/two/Cargo.toml",
        "owner/two/e.rs",
    ];
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(bad, []);
    let a = good.iter().find(|record| record.id.ends_with("a.rs")).unwrap();
    assert_eq!(a.text, "fn a() {}");
    assert_eq!(
        serde_json::Value::Object(a.meta.clone()),
        serde_json::json!({"repo": "owner/one", "path": "src/a.rs", "licence": "MIT"})
    );
    let two = good.iter().find(|record| record.id.ends_with("e.rs")).unwrap();
    assert_eq!(two.meta["licence"], "MIT OR Apache-2.0");
    let counted = [("binary", 1), ("junk_folder", 3), ("licence", 5), ("not_utf8", 1), ("too_big", 1)];
    assert_eq!(skipped, counted.into_iter().collect());
    // The order is the same each time.
    assert_eq!(read_all(folder.path(), &options).0, good);
    // One project by itself.
    let (good, _, _) = read_all(&folder.path().join("owner/two"), &options);
    assert_eq!(good[1].id, "two/e.rs");
    // All projects.
    let (good, _, _) = read_all(folder.path(), &ReadOptions { max_file: 1500, check_licence: false });
    assert!(good.iter().any(|record| record.id == "owner/three/f.rs" && record.meta["licence"] == "unknown"));
    assert!(good.iter().any(|record| record.id == "nothing/g.rs"));
    assert!(read(&folder.path().join("none"), &options, &mut |_| Ok(())).is_err());
}

const LINES: &str = "{\"content\": \"a\", \"path\": \"x/a.rs\", \"repo_name\": \"o/r\", \"license\": \"mit\"}\n\
    {\"text\": \"b\", \"meta\": {\"path\": \"b.rs\", \"repo_name\": \"o/r\", \"license\": \"apache-2.0\"}}\n\
    not json\n\
    {\"content\": \"c\", \"max_stars_repo_path\": \"c.rs\", \"max_stars_repo_name\": \"o/s\", \"max_stars_repo_licenses\": [\"MIT\", \"Apache-2.0\"]}\n\
    {\"content\": \"d\", \"path\": \"d.rs\", \"repo_name\": \"o/s\", \"licenses\": [\"MIT\", \"GPL-3.0\"]}\n\
    {\"content\": \"e\", \"path\": \"e.rs\", \"repo_name\": \"o/s\"}\n\
    \n\
    {\"content\": null, \"path\": \"f.rs\", \"license\": \"mit\"}\n\
    {\"content\": \"g\", \"path\": \"g.rs\", \"license\": \"mit\", \"binary\": true}\n\
    {\"code\": \"h\", \"license\": \"bsd-3-clause\"}\n";

#[test]
fn json_lines_of_several_datasets_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("x.jsonl"), LINES).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(LINES.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    fs::write(path("x.jsonl.gz"), &gz).unwrap();
    fs::write(path("x.jsonl.zst"), zstd::encode_all(LINES.as_bytes(), 1).unwrap()).unwrap();
    for name in ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst"] {
        let (good, bad, skipped) = read_all(&path(name), &ReadOptions::default());
        let ids: Vec<(&str, &str)> = good.iter().map(|record| (record.id.as_str(), record.text.as_str())).collect();
        let last = format!("{name} line 10");
        assert_eq!(ids, [("o/r/x/a.rs", "a"), ("o/r/b.rs", "b"), ("o/s/c.rs", "c"), (last.as_str(), "h")]);
        assert_eq!(good[2].meta["licence"], "MIT AND Apache-2.0");
        let places: Vec<&str> = bad.iter().map(|rejected| rejected.place.as_str()).collect();
        assert_eq!(places, [format!("{name} line 3"), format!("{name} line 8")]);
        assert_eq!(skipped, [("licence", 2), ("binary", 1)].into_iter().collect());
    }
    fs::write(path("cut.jsonl.gz"), &gz[..gz.len() - 20]).unwrap();
    let (good, bad, _) = read_all(&path("cut.jsonl.gz"), &ReadOptions::default());
    assert!(good.len() <= 4 && bad.last().unwrap().reason.contains("truncated"), "{bad:?}");
}

#[test]
fn parquet_in_bigquerys_columns_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let strings = |values: [Option<&str>; 4]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let batch = RecordBatch::try_from_iter([
        ("id", strings([Some("1"), Some("2"), Some("3"), Some("4")])),
        ("content", strings([Some("a"), None, Some("c"), Some("d")])),
        ("sample_path", strings([Some("a.rs"), Some("b.rs"), Some("c.rs"), Some("d.rs")])),
        ("sample_repo_name", strings([Some("o/r"), Some("o/r"), Some("o/s"), Some("o/t")])),
        ("license", strings([Some("mit"), Some("mit"), Some("gpl-2.0"), Some("bsd-3-clause")])),
        ("binary", Arc::new(BooleanArray::from(vec![false, false, false, true])) as ArrayRef),
    ])
    .unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let (good, bad, skipped) = read_all(&path, &ReadOptions::default());
    assert_eq!(good.iter().map(|record| (record.id.as_str(), record.text.as_str())).collect::<Vec<_>>(), [("o/r/a.rs", "a")]);
    assert_eq!(bad.iter().map(|rejected| rejected.place.as_str()).collect::<Vec<_>>(), ["x.parquet row 1"]);
    assert_eq!(skipped, [("licence", 1), ("binary", 1)].into_iter().collect());
    fs::write(&path, &fs::read(&path).unwrap()[..100]).unwrap();
    let problem = read(&path, &ReadOptions::default(), &mut |_| Ok(())).unwrap_err();
    assert!(problem.to_string().contains("Parquet file"), "{problem}");
}

/// Time is linear: eight times the input takes less than 40 times as long.
#[test]
fn nasty_files_are_worked_through() {
    for piece in [
        "/* Copyright 2010 */",
        "// (c) 2010\n\n",
        "/*",
        "# Copyright\n#\n",
        "\"\"\"",
        "\n",
        "(c)",
        "--[[",
        "/* */\n",
        " ",
        "#define A\n",
        "copyright 2010 ",
        "// a\n//\n",
    ] {
        for path in [None, Some("a.c"), Some("a.py")] {
            let text = piece.repeat(2_000_000 / piece.len());
            for redpajama in [false, true] {
                let cleaned = clean(&text, path, &Options { redpajama, ..Options::default() });
                assert!(cleaned.text.len() <= text.len(), "{piece} {path:?}");
            }
            licence::detect(&text);
        }
    }
}

#[test]
fn fuzz_headers() {
    let mut seeds: Vec<Vec<u8>> = HEADERS.iter().map(|(_, before, _)| before.as_bytes().to_vec()).collect();
    seeds.extend([MIT, BSD2, GPL, APACHE, LINES].map(|text| text.as_bytes().to_vec()));
    seeds.extend(
        ["\u{feff}#!\u{e9}\u{2028}", "coding:coding=", "/**//*/", "#\u{c5}\n", "\u{a9}2010\u{a9}"]
            .map(|text| text.as_bytes().to_vec()),
    );
    let paths: Vec<Option<&str>> = HEADERS
        .iter()
        .map(|(path, ..)| Some(*path))
        .chain([None, Some("x.f"), Some("x.bat"), Some("x.ps1"), Some("x.m")])
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(0x61);
    let mut removed = 0u64;
    for _ in 0..inputs() {
        let bytes = mutate(&mut rng, &seeds);
        let text = String::from_utf8_lossy(&bytes);
        let path = paths[rng.random_range(0..paths.len())];
        let (stripped, pieces) = strip_header(&text, path);
        // Nothing is made up: at most the marks of one comment a header.
        assert!(stripped.len() <= text.len() + 8 * pieces.len(), "{text}");
        removed += u64::from(!pieces.is_empty());
        clean(&text, path, &Options::default());
        clean(&text, path, &Options { redpajama: true, ..Options::default() });
        licence::detect(&text);
        licence::is_allowed(&text);
        licence::spdx_header(&text);
        for name in ["Cargo.toml", "package.json"] {
            licence::manifest_licence(name, &text);
        }
    }
    assert!(removed > inputs() / 10, "{removed}");
}
