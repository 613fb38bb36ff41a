//! Scores: how likely a model finds given tokens, and which of several endings it prefers.
//!
//!     cargo run --release --example 05_score [FOLDER]
//!
//! Prints the log-probability of each token of a sequence, then the endings from the likeliest to the least. Without a
//! folder (Hugging Face, Meta or native) it takes the small random model of the tests.

use recua::backend::Flex;
use recua::checkpoint::Checkpoint;
use recua::eval::logprobs;

fn main() -> recua::Result<()> {
    let folder = std::env::args().nth(1);
    let folder = folder.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_llama").into());
    let model = Checkpoint::open(&folder)?.load::<Flex>(&Default::default())?;

    let context = [1, 17, 230, 5];
    let scores = logprobs(&model, &context)?;
    for (token, score) in context[1..].iter().zip(&scores) {
        println!("token {token:3}  log-probability {score:.4}");
    }
    println!("perplexity {:.2}", (-scores.iter().sum::<f32>() / scores.len() as f32).exp());

    // A choice: the ending with the larger sum over its own tokens.
    let mut endings = Vec::new();
    for ending in [vec![8, 9], vec![100, 101], vec![400]] {
        let scores = logprobs(&model, &[&context[..], &ending].concat())?;
        let own = &scores[context.len() - 1..];
        endings.push((own.iter().sum::<f32>(), ending));
    }
    endings.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (score, ending) in endings {
        println!("ending {ending:?}  {score:.4}");
    }
    Ok(())
}
