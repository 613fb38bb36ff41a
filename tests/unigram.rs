//! SentencePiece unigram models: their training, and CCNet's perplexity by both models.

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua::build::SentencePieces;
use recua::corpus::filters::perplexity::{PerplexityModel, normalize_for_lm, perplexity, pieces_line};
use recua::corpus::lm::{LmTrainConfig, Model, train_lm};
use recua::tokenizer::{Tokenizer, UnigramConfig, UnigramTrainer, save_unigram, train_unigram};

fn pieces_of(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text).unwrap().into_iter().filter_map(|id| tokenizer.token_of(id)).collect()
}

#[test]
fn pieces_are_learned() {
    let stems = "walk talk jump climb listen answer paint cook look call clean wash turn open start play plant count land pull";
    let stems: Vec<&str> = stems.split(' ').collect();
    let endings = ["", "ed", "ing", "s"];
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let texts: Vec<String> = (0..400)
        .map(|_| {
            let mut word = || format!("{}{}", stems[rng.random_range(0..stems.len())], endings[rng.random_range(0..4)]);
            format!("the {}  {} the {}", word(), word(), word())
        })
        .chain(["\u{3c9}".to_string()])
        .collect();
    let config = UnigramConfig { vocab_size: 56, character_coverage: 0.9995, ..Default::default() };
    let model = train_unigram(texts.iter().map(Ok), &config).unwrap();
    let mut shuffled = UnigramTrainer::new(&config).unwrap();
    texts.iter().rev().for_each(|text| shuffled.add(text));
    assert!(model == shuffled.finish().unwrap(), "the order of the texts matters");
    let tokenizer = Tokenizer::from_sentencepiece(&model, Path::new("x")).unwrap();
    assert!((50..=56).contains(&tokenizer.vocab_size()), "{}", tokenizer.vocab_size());
    assert_eq!((tokenizer.token_of(0), tokenizer.bos_id(), tokenizer.eos_id()), (Some("<unk>".into()), Some(1), Some(2)));
    assert_eq!(pieces_of(&tokenizer, "the walked")[..2], ["\u{2581}the", "\u{2581}walk"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("the listening climbs").unwrap()).unwrap(), "the listening climbs");
    // One character in some ten thousand is left to the unknown token; all others have a piece.
    assert_eq!(tokenizer.id_of("\u{3c9}"), None);
    for c in "walktjumpcibsenerhoyd".chars() {
        assert!(tokenizer.id_of(&c.to_string()).is_some(), "{c}");
    }
    // More pieces, fewer of them in a text.
    let large = train_unigram(texts.iter().map(Ok), &UnigramConfig { vocab_size: 90, ..config }).unwrap();
    let large = Tokenizer::from_sentencepiece(&large, Path::new("x")).unwrap();
    let cut = |tokenizer: &Tokenizer| texts.iter().map(|text| tokenizer.encode(text).unwrap().len()).sum::<usize>();
    let chars: usize = texts.iter().map(|text| text.len()).sum();
    assert!(cut(&large) < cut(&tokenizer) && cut(&tokenizer) * 2 < chars, "{} {} {chars}", cut(&large), cut(&tokenizer));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pieces.model");
    save_unigram(&model, &path).unwrap();
    assert_eq!(Tokenizer::open(&path).unwrap().hash(), tokenizer.hash());
}

#[test]
fn what_pieces_cannot_be_learned_from_is_said() {
    let run = |texts: &[&str], config: &UnigramConfig| train_unigram(texts.iter().map(Ok), config).unwrap_err().to_string();
    let config = UnigramConfig { vocab_size: 10, ..Default::default() };
    assert!(run(&["  "], &config).contains("no words to learn pieces from"));
    assert!(run(&["abcdefgh"], &config).contains("9 characters for 7 pieces"));
    assert!(run(&[], &UnigramConfig { vocab_size: 3, ..config.clone() }).contains("expected 4"));
    assert!(run(&[], &UnigramConfig { character_coverage: 1.5, ..config.clone() }).contains("expected 0 to 1"));
    assert!(run(&[], &UnigramConfig { max_piece_chars: 25, ..config.clone() }).contains("expected 1 to 24"));
    assert!(run(&[], &UnigramConfig { seed_size: 5, ..config.clone() }).contains("seeds for every piece"));
    // A bound on words makes the rare ones go, not the run.
    let mut trainer = UnigramTrainer::new(&UnigramConfig { max_words: 4, ..config }).unwrap();
    (0..50).for_each(|i| trainer.add(&format!("aa bb {}", ["ab", "ba", "aab", "bba"][i % 4])));
    assert!(!trainer.finish().unwrap().is_empty());
}

/// From texts to both models to perplexities: text like the one that was learned from is the least surprising.
#[test]
fn own_models_tell_text_from_noise() {
    let texts: Vec<String> = (0..300).map(|i| format!("The llama number {i} eats grass, and the other llama sleeps.")).collect();
    let normal: Vec<String> = texts.iter().map(|text| normalize_for_lm(text)).collect();
    let pieces = train_unigram(normal.iter().map(Ok), &UnigramConfig { vocab_size: 80, ..Default::default() }).unwrap();
    let tokenizer = Tokenizer::from_sentencepiece(&pieces, Path::new("x")).unwrap();
    let lines: Vec<String> =
        normal.iter().map(|text| pieces_line(&SentencePieces::new(tokenizer.clone()).unwrap(), text)).collect();
    let folder = tempfile::tempdir().unwrap();
    let arpa = folder.path().join("model.arpa");
    let config = LmTrainConfig { temp: folder.path().into(), ..LmTrainConfig::default() };
    train_lm(lines.iter().map(Ok), &config, &arpa).unwrap();
    let model = PerplexityModel::new(Box::new(SentencePieces::new(tokenizer.clone()).unwrap()), Model::open(&arpa).unwrap());
    let good = model.perplexity("The llama number 7 eats grass, and the other llama sleeps.").unwrap();
    let bad = model.perplexity("grass the sleeps number other eats and , llama llama .").unwrap();
    let foreign = model.perplexity("\u{43b}\u{430}\u{43c}\u{430} \u{435}\u{441}\u{442}").unwrap();
    assert!(good < 3.0 && bad > 3.0 * good && foreign > bad, "{good} {bad} {foreign}");
    assert_eq!(model.perplexity(" \n"), None);
    // By the definition, from the pieces.
    let line = pieces_line(&SentencePieces::new(tokenizer.clone()).unwrap(), &normal[5]);
    let score = f64::from(Model::open(&arpa).unwrap().score(&line, true, true));
    assert_eq!(model.perplexity(&texts[5]), Some(perplexity(score, line.split(' ').count())));
}
