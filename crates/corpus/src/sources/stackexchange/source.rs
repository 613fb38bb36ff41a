//! Stack Exchange as a source: sites to shards, posts sorted on the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::{Cleaner, Common, Inputs, ReadTools, Skipped, Source, settings, source::as_it_is};
use super::{Options, Post, SortKey, Thread, Threads, largest_sites, posts, site_name, thread};
use crate::engine::{SortRow, SortWriter, config_hash, descending};
use crate::error::{Error, Result};
use crate::{Cleaned, Rejected, Sink, unpack};

settings::settings! {
    /// Dumps of Stack Exchange sites (LLaMA section 2.1).
    StackExchange, stackexchange, paper = (2.0, 1.03),
    {
        /// How threads are written.
        rules: Options = Options::default(),
        /// Only the largest sites, by posts. `None`: all.
        largest: Option<usize> = Some(28),
    }
}

impl Source for StackExchange {
    fn common(&self) -> Common<'_> {
        self.shared()
    }

    fn check(&self) -> Result<()> {
        if self.largest == Some(0) {
            let problem = "expected a number above 0, got 0";
            return Err(Error::bad_value(self.shared().key("largest"), problem, "leave the source out to not use it"));
        }
        Ok(())
    }

    fn inputs(&self) -> Inputs {
        Inputs::Files(|name| name.ends_with(".7z") || unpack::without_packing(name).ends_with("posts.xml"))
    }

    fn company(&self) -> &'static [&'static str] {
        &["badges.xml", "comments.xml", "posthistory.xml", "postlinks.xml", "tags.xml", "users.xml", "votes.xml"]
    }

    /// A site is a shard. Counting the posts unpacks all dumps: where there is a choice to be made, it is made once and written down.
    fn shards(&self, dumps: Vec<PathBuf>, out: &Path) -> Result<Vec<Vec<PathBuf>>> {
        let mut all: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for dump in &dumps {
            all.entry(site_name(dump)).or_default().push(dump.clone());
        }
        let most = self.largest.unwrap_or(usize::MAX);
        if all.len() > most {
            let folder = out.join("read");
            let chosen = folder.join("stackexchange-sites.json");
            let of: Vec<_> = dumps.iter().map(|d| (d.display().to_string(), d.metadata().map_or(0, |m| m.len()))).collect();
            let key = config_hash(&(of, most))?;
            let known = std::fs::read(&chosen).ok().and_then(|b| serde_json::from_slice::<(String, Vec<String>)>(&b).ok());
            let names = match known.filter(|(of, _)| *of == key) {
                Some((_, names)) => names,
                None => {
                    let names: Vec<_> = largest_sites(&dumps, most)?.into_iter().map(|site| site.name).collect();
                    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
                    crate::files::write_atomic(&chosen, json!((key, &names)).to_string().as_bytes())?;
                    names
                }
            };
            all.retain(|name, _| names.contains(name));
        }
        Ok(all.into_values().collect())
    }

    fn read_settings(&self) -> Value {
        json!((&self.rules, self.largest))
    }

    fn read(&self, dumps: &[PathBuf], tools: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped> {
        let site = dumps.first().map(|dump| site_name(dump)).unwrap_or_default();
        let mut others = 0;
        let mut writer = SortWriter::create(&tools.scratch)?;
        for dump in dumps {
            let read = posts(dump, &mut |post| match post {
                Ok(post) => writer.push(&to_row(&post)?),
                Err(rejected) => sink(Err(rejected)),
            });
            match read {
                Ok(more) => others += more,
                Err(e @ Error::BadFile { .. }) => {
                    sink(Err(Rejected { place: dump.display().to_string(), reason: e.to_string() }))?;
                }
                Err(e) => return Err(e),
            }
        }
        writer.finish()?.publish()?;
        let (mut threads, mut untold) = (Threads::default(), 0);
        let mut document = |(question, mut answers): Thread| match thread(&site, &question, &mut answers, &self.rules) {
            Some(record) => sink(Ok(record)),
            None => {
                untold += 1;
                Ok(())
            }
        };
        (tools.shuffle)()?
            .sort(std::slice::from_ref(&tools.scratch), &mut |row| threads.push(of_row(&row)?).map_or(Ok(()), &mut document))?;
        threads.finish().map_or(Ok(()), &mut document)?;
        std::fs::remove_file(&tools.scratch).map_err(Error::io("remove", &tools.scratch))?;
        let counts = [
            ("not_a_post", others),
            ("answer_without_question", threads.orphans),
            ("answer_beyond_limit", threads.cut),
            ("repeated_post", threads.repeated),
            ("nothing_to_learn", untold),
        ];
        Ok(counts.into_iter().filter(|(_, n)| *n > 0).collect())
    }

    /// The HTML is read when threads are made.
    fn cleaner(&self) -> Result<Cleaner<'_>> {
        Ok(Box::new(|record| as_it_is(&record.text)))
    }

    fn clean_text(&self, text: &str, _: Option<&str>) -> Cleaned {
        super::clean(text, &self.rules)
    }
}

/// A post with its [`SortKey`].
fn to_row(post: &Post) -> Result<SortRow<4>> {
    let key = SortKey::new(post);
    let text = serde_json::to_string(post).map_err(|e| Error::internal("post", e.to_string()))?;
    Ok(SortRow { key: [key.thread, key.is_answer.into(), descending(post.score), key.id], text })
}

fn of_row(row: &SortRow<4>) -> Result<Post> {
    serde_json::from_str(&row.text)
        .map_err(|e| Error::bad_value("sorted post", e.to_string(), "run the stage again; if that does not help, report it"))
}
