//! One generic function, the backend chosen by name at run time.
//!
//!     cargo run --release --example 04_choose_backend [NAME...]
//!     cargo run --release --features wgpu --example 04_choose_backend flex wgpu
//!
//! Prints the loss of the same untrained model on every backend named (default: the CPU backends of this build): equal up to rounding.
//! A name that cannot be had is an error that says what to install.

use burn::tensor::{Int, Tensor, TensorData};
use recua::backend::{BackendName, Job, Kind};
use recua::model::{InitConfig, Llama, ModelConfig};
use recua::ops::LlamaOps;

/// What to run, with its input. (A closure cannot be generic over the backend.)
struct Loss {
    seed: u64,
}

impl Job for Loss {
    type Output = f32;

    fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<f32> {
        let config = ModelConfig::preset("debug")?;
        let model = Llama::<B>::init(&config, &InitConfig { seed: self.seed, ..Default::default() }, &device)?;
        let ids = |offset: i32| {
            let ids: Vec<i32> = (0..64).map(|i| (i * 7 + offset) % 512).collect();
            Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [1, 64]), &device)
        };
        let sum = model.loss_sum(ids(0), ids(7)).into_data().convert::<f32>();
        Ok(sum.iter::<f32>().sum::<f32>() / 64.0)
    }
}

fn main() -> recua::Result<()> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names = Kind::ALL.into_iter().filter(|k| k.compiled() && k.is_cpu()).map(|k| k.name().into()).collect();
    }
    for name in names {
        let backend: BackendName = name.parse()?;
        println!("{name:8} loss {:.6}", backend.run(Loss { seed: 1 })?);
    }
    Ok(())
}
