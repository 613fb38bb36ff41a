//! Loads a checkpoint and generates with greedy decoding: a folder of Hugging Face's, Meta's or recua's format, or a GGUF file.
//!
//!     cargo run --release --example 02_hugging_face [MODEL [PROMPT]]
//!
//! Prints the prompt and up to 16 tokens after it: text where the model has a tokenizer, else ids. Without MODEL it takes the small random model
//! of the tests, which has none.

use std::ops::ControlFlow;

use recua::backend::Flex;
use recua::checkpoint::Checkpoint;
use recua::generate::{Bos, Request, SampleConfig, encode_prompt, end_ids, generate};
use recua::tokenizer::Tokenizer;

fn main() -> recua::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_llama").into());
    let text = args.next().unwrap_or_else(|| "The pack train".into());

    let checkpoint = Checkpoint::open(&path)?;
    println!("{}: {}, {} parameters", path, checkpoint.format(), checkpoint.config().num_params());
    let model = checkpoint.load::<Flex>(&Default::default())?;

    let tokenizer = checkpoint.tokenizer_path().map(Tokenizer::open).transpose()?;
    let prompt = match &tokenizer {
        Some(tokenizer) => encode_prompt(tokenizer, &text, Bos::Auto, false)?,
        None => vec![1, 42, 7],
    };
    let sampling = SampleConfig { temperature: 0.0, ..Default::default() };
    let stop_ids = tokenizer.as_ref().map_or(Vec::new(), |tokenizer| end_ids(Some(&checkpoint), tokenizer));
    let request = Request { prompt: prompt.clone(), max_new: 16, stop_ids, sampling, ..Default::default() };
    let (ids, why) = generate(&model, request, &mut |_| ControlFlow::Continue(()))?;
    match tokenizer {
        Some(tokenizer) => println!("{text}{} ({why:?})", tokenizer.decode_after(&prompt, &ids)?),
        None => println!("{prompt:?} -> {ids:?} ({why:?})"),
    }
    Ok(())
}
