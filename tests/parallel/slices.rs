//! Checkpoints whose slices do not make a whole.

use recua::checkpoint::{self, RankFiles, native};
use recua::model::{ModelConfig, Slice};

use super::common::config;

#[test]
fn slices_with_a_hole_or_an_overlap_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig { n_layers: 1, ..config() };
    let write = |name: &str, change: &dyn Fn(usize, &mut Vec<Slice>)| {
        native::save(&dir.path().join(name), 1, &mut |writer| {
            writer.model(&config);
            for index in 0..2 {
                let mut slices = config.slices(recua::model::Part { index, of: 2 });
                slices.retain(|slice| index == 0 || !slice.is_whole());
                change(index, &mut slices);
                let mut files = RankFiles::default();
                let data: Vec<Vec<u8>> = slices.iter().map(|slice| vec![0; 4 * slice.elements()]).collect();
                // The writer's folder is beside the name that it will have.
                let folder = std::fs::read_dir(dir.path().join(name)).unwrap().next().unwrap().unwrap().path();
                files.write(&folder, &format!("model-r{index:05}.safetensors"), &slices, &mut |i| Ok((&data[i]).into()))?;
                writer.add(files);
            }
            Ok(())
        })
        .unwrap();
        checkpoint::Checkpoint::open(dir.path().join(name).join("step-1")).map(drop)
    };
    write("good", &|_, _| {}).unwrap();
    let w2 = |slices: &mut Vec<Slice>| slices.iter().position(|slice| slice.name.ends_with("w2.weight")).unwrap();
    let hole = write("hole", &|index, slices| {
        if index == 1 {
            let at = w2(slices);
            slices.remove(at);
        }
    });
    let hole = hole.unwrap_err().to_string();
    assert!(hole.contains("layers.0.feed_forward.w2.weight") && hole.contains("a hole"), "{hole}");
    let overlap = write("overlap", &|index, slices| {
        if index == 1 {
            let at = w2(slices);
            slices[at].offsets[1] -= 1;
        }
    });
    let overlap = overlap.unwrap_err().to_string();
    assert!(overlap.contains("layers.0.feed_forward.w2.weight") && overlap.contains("overlap"), "{overlap}");
}
