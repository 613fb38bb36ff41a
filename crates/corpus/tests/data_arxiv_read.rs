//! arXiv: archives to documents.

use std::{io::Write, path::Path};

use flate2::{Compression, write::GzEncoder};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use recua_corpus::{
    Record, Rejected,
    sources::arxiv::{FILE_SEPARATOR, Options, clean, read},
};

use crate::data_arxiv::{PIECES, mutate, rounds};

fn read_all(path: &Path, options: &Options) -> Vec<Result<Record, Rejected>> {
    let mut all = Vec::new();
    let mut sink = |record| {
        all.push(record);
        Ok(())
    };
    read(path, options, &mut sink).unwrap();
    all
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What `read` gives for a file of this name and content.
fn read_bytes(name: &str, bytes: &[u8], options: &Options) -> Vec<Result<Record, Rejected>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read_all(&path, options)
}

/// The one document of a paper of these files.
fn paper(files: &[(&str, &str)]) -> Result<Record, Rejected> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, t)| (*n, t.as_bytes())).collect();
    read_bytes("2101.00001.gz", &gz(&tar(&files)), &Options::default()).remove(0)
}

#[test]
fn inputs_are_put_in_place() {
    let main = "\\documentclass{a}\n\\begin{document}\n\\input{sec/one}% \\input{no}\n\\include{two.tex}\\input three \\input{gone}\\input{p.bbl}X\\end{document}";
    let record = paper(&[
        ("p.bbl", "\\bibitem{x}"),
        ("sec/one.tex", "\\section{1} % last line"),
        ("two.tex", "2\\input{./sec/../two}\\endinput no"),
        ("three.tex", "3"),
        ("main.tex", main),
        ("unused.tex", "no"),
    ])
    .unwrap();
    assert_eq!(record.id, "2101.00001");
    assert_eq!(
        record.text,
        "\\documentclass{a}\n\\begin{document}\n\\section{1} % last line\n% \\input{no}\n2\n3\n \\bibliography{}X\\end{document}"
    );
    assert_eq!(
        serde_json::to_value(&record.meta).unwrap(),
        serde_json::json!({"arxiv_id": "2101.00001", "yymm": "2101", "files": ["main.tex", "sec/one.tex", "two.tex", "three.tex"], "missing": ["./sec/../two", "gone"]})
    );
    assert_eq!(clean(&record.text, &Options::default()).text, "\\section{1}\n2\n3");
}

#[test]
fn subfiles_and_imports() {
    let main = "\\documentclass{a}\\begin{document}\\section{A}\n\\subfile{s/x}\\import{i/}{y}\\begin{verbatim}\\input{z}\\end{verbatim}\\end{document}";
    let record = paper(&[
        ("src/main.tex", main),
        ("src/s/x.tex", "\\documentclass[../main]{subfiles}\\begin{document}X\\end{document}"),
        ("src/i/y.tex", "Y\\subimport{j}{w}\\input{v}"),
        ("src/i/j/w.tex", "W"),
        ("src/i/v.tex", "V"),
        ("src/z.tex", "no"),
    ])
    .unwrap();
    assert_eq!(
        clean(&record.text, &Options::default()).text,
        "\\section{A}\nX\nYW\nV\n\\begin{verbatim}\\input{z}\\end{verbatim}"
    );
}

#[test]
fn the_main_file() {
    let document = |text: &str| format!("\\documentclass{{a}}\\begin{{document}}{text}\\end{{document}}");
    let long = document(&"long ".repeat(9));
    let record = paper(&[("supplement.tex", &document("s")), ("m.tex", &long), ("macros.tex", &"% x".repeat(500))]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["m.tex"]));
    let includes = document("\\input{long}");
    let record = paper(&[("a.tex", &includes), ("b.tex", &document("not so long")), ("long.tex", &"text ".repeat(9))]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["a.tex", "long.tex"]), "with what it includes");
    let figure = format!("\\documentclass{{standalone}}\\begin{{document}}{}\\end{{document}}", "x".repeat(99));
    let record =
        paper(&[("fig.tex", &figure), ("b.tex", &document("b")), ("c.tex", "%\\documentclass\n\\begin{document}")]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["b.tex"]));
    let record = paper(&[("defs.tex", "\\def\\a{b}"), ("paper.tex", "\\input defs plain TeX \\bye")]).unwrap();
    assert_eq!(record.meta["files"], serde_json::json!(["paper.tex", "defs.tex"]), "plain TeX");
    assert_eq!(paper(&[("fig.txt", "x")]).unwrap_err().reason, "no LaTeX source in the archive");
}

#[test]
fn bulk_tars() {
    let tex = b"\\documentclass{a}\\begin{document}\\section{A} x\\end{document}";
    let latin1 = b"\\documentclass{a}\\begin{document}\\section{Caf\xe9 \x93q\x94} x\\end{document}";
    let damaged = &gz(tex)[..30];
    let bulk = tar(&[
        ("1202/1202.3665.gz", &gz(tex)),
        ("1202/1202.00001v2.gz", &gz(&tar(&[("ms.tex", tex), ("f.eps", &[0; 3000])]))),
        ("9901/astro-ph9901001.gz", &gz(latin1)),
        ("1202/1202.0002.pdf", b"%PDF-1.4"),
        ("1202/1202.0003.gz", &gz(b"%PDF-1.4")),
        ("1202/1202.0004.gz", &gz(b"%!PS-Adobe")),
        ("1202/1202.0005.gz", &gz(b"%auto-ignore\nwithdrawn")),
        ("1202/1202.0006.gz", damaged),
        ("1202/1202.0007.gz", &gz(&tar(&[("x.tex", tex)])[..600])),
        ("1202/note.doc", b"x"),
    ]);
    let all = read_bytes("arXiv_src_1202_001.tar", &bulk, &Options::default());
    let ids: Vec<_> = all.iter().flatten().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["1202.3665", "1202.00001", "astro-ph/9901001"]);
    let latin1 = all[2].as_ref().unwrap();
    assert!(latin1.text.contains("\\section{Café “q”}"));
    assert_eq!(latin1.meta["latin1"], serde_json::json!(["astro-ph9901001.tex"]));
    assert_eq!(latin1.meta["yymm"], "9901");
    let rejected: Vec<_> = all.iter().filter_map(|r| r.as_ref().err()).map(|r| (r.place.as_str(), r.reason.as_str())).collect();
    for (got, (place, reason)) in rejected.iter().zip([
        ("1202.0002", "only a PDF"),
        ("1202.0003", "only a PDF"),
        ("1202.0004", "only PostScript"),
        ("1202.0005", "withdrawn"),
        ("1202.0006", "damaged"),
        ("1202.0007", "damaged"),
        ("note.doc", "neither"),
    ]) {
        assert!(got.0 == place && got.1.starts_with(reason), "{got:?}");
    }
    assert_eq!(rejected.len(), 7);

    let strict = Options { strict_utf8: true, ..Options::default() };
    assert_eq!(read_bytes("b.tar", &bulk, &strict)[2].as_ref().unwrap_err().reason, "astro-ph9901001.tex is not UTF-8");
    // Truncated inside the third member: two papers, and word of the damage.
    let cut = bulk.windows(23).position(|w| w == b"9901/astro-ph9901001.gz").unwrap() + 512 + 40;
    let all = read_bytes("b.tar", &bulk[..cut], &Options::default());
    assert_eq!(all.iter().flatten().count(), 2);
    assert!(all.len() >= 3);
}

#[test]
fn sizes_are_bounded() {
    let zeros = vec![b' '; 3 << 20];
    let small = Options { max_inflated: 1 << 20, max_tex: 1 << 16, ..Options::default() };
    let reason = |files: &[(&str, &[u8])]| read_bytes("1.gz", &gz(&tar(files)), &small).remove(0).unwrap_err().reason;
    assert!(reason(&[("figure.eps", &zeros), ("a.tex", b"x")]).contains("inflates to more than 1048576 bytes"));
    assert!(reason(&[("a.tex", &zeros[..1 << 17])]).contains("more than 65536 bytes of LaTeX"));
    let single = read_bytes("1.gz", &gz(&zeros), &small).remove(0).unwrap_err().reason;
    assert!(single.contains("more than 65536 bytes"), "{single}");
    // Files that include files: 10^9 copies of the last.
    let mut files = vec![("a.tex".to_owned(), format!("\\documentclass{{a}}\\begin{{document}}{}", "\\input{b}".repeat(10)))];
    for (name, next) in ('b'..'k').zip('c'..) {
        files.push((format!("{name}.tex"), format!("\\input{{{next}}}").repeat(10)));
    }
    let files: Vec<_> = files.iter().map(|(n, t)| (n.as_str(), t.as_bytes())).collect();
    let record = read_bytes("1.gz", &gz(&tar(&files)), &small).remove(0).unwrap();
    assert!(record.text.len() < 1 << 16);
}

#[test]
fn folders_and_single_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("p/main.tex", b"\\documentclass{a}\\begin{document}\\input{s/x}\\end{document}");
    write("p/s/x.tex", b"X");
    write("p/.hidden.tex", &[b'x'; 999]);
    let all = read_all(&dir.path().join("p"), &Options::default());
    assert_eq!(all[0].as_ref().unwrap().meta["files"], serde_json::json!(["main.tex", "s/x.tex"]));
    assert_eq!((all.len(), all[0].as_ref().unwrap().id.as_str()), (1, "p"));
    assert_eq!(read_all(&dir.path().join("p/s/x.tex"), &Options::default())[0].as_ref().unwrap().text, "X");
    write("q/2.tar", &tar(&[("a/2.gz", &gz(b"two"))]));
    write("q/1.tar.gz", &gz(&tar(&[("a.tex", b"one")])));
    let all = read_all(&dir.path().join("q"), &Options::default());
    let texts: Vec<_> = all.iter().map(|r| r.as_ref().unwrap().text.as_str()).collect();
    assert_eq!(texts, ["one", "two"]);
    assert!(read(&dir.path().join("absent.tar"), &Options::default(), &mut |_| Ok(())).is_err());
}

#[test]
fn redpajama_mode_reads_files_as_they_come() {
    let files: [(&str, &[u8]); 3] = [("b.tex", b"\\section{B}\r\n"), ("x.sty", b"no"), ("a.tex", b"A")];
    let options = Options { rp_compat: true, ..Options::default() };
    let record = read_bytes("1.gz", &gz(&tar(&files)), &options).remove(0).unwrap();
    assert_eq!(record.text, format!("\\section{{B}}\r\n{FILE_SEPARATOR}A"));
    assert_eq!(clean(&record.text, &options).text, "\\section{B}\r\n\n");
}

#[test]
fn fuzz_archives() {
    let tex = b"\\documentclass{a}\\begin{document}\\input{b}\\section{A} x\\end{document}";
    let inner = tar(&[("a.tex", tex), ("b.tex", b"\\input{a}\\input c \xe9"), ("c.tex", b"\\subimport{x}{b}")]);
    let stored = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bulk = tar(&[("1202/1202.3665.gz", &stored(&inner)), ("1202/1202.1.pdf", b"%PDF"), ("1202/math0601001.gz", &gz(tex))]);
    let seeds = [(bulk, "f.tar"), (stored(&inner), "f.gz"), (gz(&inner), "f.gz"), (inner, "f.tar")];
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let options = [Options { max_tex: 1 << 20, ..Options::default() }, Options { rp_compat: true, ..Options::default() }];
    let (mut read_papers, mut rejected) = (0, 0);
    for round in 0..rounds() {
        let (seed, name) = &seeds[round % seeds.len()];
        let bytes = mutate(&mut rng, std::slice::from_ref(seed), &PIECES);
        // Right checksums, else little is looked at past them.
        let bytes = if round % 3 == 0 { bytes } else { with_checksums(bytes) };
        let path = dir.path().join(name);
        // A new file: to write over one waits for the disk.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, &bytes).unwrap();
        for paper in read_all(&path, &options[round % 2]) {
            match paper {
                Ok(record) => {
                    assert!(record.text.len() <= 1 << 24);
                    read_papers += 1;
                }
                Err(_) => rejected += 1,
            }
        }
    }
    assert!(read_papers > 0 && rejected > 0, "{read_papers} read, {rejected} rejected");
}

/// Puts the right checksum into each block that says `ustar`.
fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

#[test]
fn samples() {
    let Ok(data) = std::env::var("RECUA_DATA") else {
        println!("skipped: RECUA_DATA is not set");
        return;
    };
    let data = Path::new(&data).join("arxiv");
    let papers = read_all(&data.join("arXiv-src-form/arXiv_src_sample_001.tar"), &Options::default());
    let ids: Vec<_> = papers.iter().map(|p| p.as_ref().unwrap().id.as_str()).collect();
    assert_eq!(ids, ["1202.3665", "1707.08043", "1708.00137"]);
    for (paper, first, last, gone) in [
        (&papers[0], "\\section{Introduction}", "", ["\\paramvector", "\\Fig{", "\\begin{document}", "\\bibitem"]),
        (&papers[1], "\\section", "", ["\\newcommand", "\\shA", "\\ZZ", "\\bibitem"]),
        (&papers[2], "\\section", "", ["\\KetBra", "\\defeq", "\\newcommand", "\\bibitem"]),
    ] {
        let text = clean(&paper.as_ref().unwrap().text, &Options::default()).text;
        assert!(text.starts_with(first) && text.ends_with(last), "{}", &text[..60]);
        for gone in gone {
            assert!(!text.contains(gone), "{gone}");
        }
    }
    let hogg = read_all(&data.join("hogg-data-analysis-recipes/straightline"), &Options::default()).remove(0).unwrap();
    assert_eq!(hogg.meta["missing"], serde_json::json!(["../hogg_style"]));
    let hogg = read_all(&data.join("hogg-data-analysis-recipes"), &Options::default()).remove(0).unwrap();
    assert_eq!(hogg.meta["files"], serde_json::json!(["straightline/straightline.tex", "hogg_style.tex"]));
    let text = clean(&hogg.text, &Options::default()).text;
    assert!(!text.contains("\\documentname") && !text.contains("\\mmatrix"));
}
