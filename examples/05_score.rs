//! Scores given tokens: the log-probability of each, and which of several endings a model prefers.
//!
//!     cargo run --release --example 05_score [MODEL]
//!
//! Prints the log-probability of each token of a sequence and its perplexity, then the endings from the likeliest to the least. MODEL is a
//! folder of Hugging Face's, Meta's or recua's format, or a GGUF file; without it the small random model of the tests.

use recua::backend::Flex;
use recua::checkpoint::Checkpoint;
use recua::eval::logprobs;

fn main() -> recua::Result<()> {
    let path = std::env::args().nth(1);
    let path = path.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_llama").into());
    let model = Checkpoint::open(&path)?.load::<Flex>(&Default::default())?;

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
