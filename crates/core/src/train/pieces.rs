//! What each of several ranks writes of a checkpoint: the rows of every matrix that fall to it, whether or not it keeps the optimizer's state
//! of others; and what it reads of one, whoever wrote it. The first rank alone writes the gains of norms.

use std::ops::Range;
use std::path::Path;

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::run::MOMENTS;
use crate::checkpoint::native::{MODEL_SLICES, OPTIM_SLICES};
use crate::checkpoint::weights::to_bytes;
use crate::checkpoint::{RankFiles, TensorSource};
use crate::error::{Error, Result};
use crate::model::init::from_f32;
use crate::model::{Llama, Part, PerSlot, Slice, Slot};
use crate::ops::{LlamaOps, primitive, reshape, tensor};
use crate::optim::AdamW;
use crate::parallel::Ranks;
use crate::parallel::data::own_rows;

/// The rectangles of named parameters that these rows of a stored matrix are, from the top on.
fn of_rows(named: &[Slice], slot: Slot, n_layers: usize, rows: &Range<usize>) -> Vec<Slice> {
    let mut at = 0;
    let mut found = Vec::new();
    for slice in slot.parts(n_layers).into_iter().map(|i| &named[i]) {
        let end = at + slice.sizes[0];
        let (from, to) = (rows.start.clamp(at, end), rows.end.clamp(at, end));
        if from < to {
            found.push(slice.rows(from - at..to - at));
        }
        at = end;
    }
    found
}

/// What a rank writes of a slot: rows of its part of the matrix.
fn own_part(ranks_of: Part, whole_rows: usize, slot: Slot, first: bool) -> Range<usize> {
    match (slot.is_matrix(), first) {
        (true, _) => own_rows(whole_rows, ranks_of.index, ranks_of.of),
        (false, true) => 0..whole_rows,
        (false, false) => 0..0,
    }
}

/// These rows of a tensor of one or two dimensions.
fn rows_of<B: LlamaOps>(x: FloatTensor<B>, rows: &Range<usize>) -> FloatTensor<B> {
    let shape = x.shape().to_vec();
    if rows.start == 0 && rows.end == shape[0] {
        return x;
    }
    let width = shape[1..].iter().product();
    let cut = tensor::<B, 2>(reshape::<B>(x, &[shape[0], width])).narrow(0, rows.start, rows.len());
    let mut of_rows = shape;
    of_rows[0] = rows.len();
    reshape::<B>(primitive(cut), &of_rows)
}

/// Writes weights and moments of this rank into the unfinished checkpoint `dir`.
pub(super) fn save<B: LlamaOps>(model: &Llama<B>, optim: &AdamW<B>, ranks: &Ranks<B>, dir: &Path) -> Result<RankFiles> {
    let mesh = ranks.mesh().ok_or_else(|| Error::internal("save", "one device writes whole tensors"))?;
    let (config, rank) = (model.config(), mesh.world().rank());
    let named = config.slices(mesh.part());
    let stored = model.stored();
    // Each slot's rows with the tensors that hold them, which may be this rank's share already.
    let mut weights: Vec<(Slice, FloatTensor<B>)> = Vec::new();
    let mut moments = Vec::new();
    let both = [optim.moments(0), optim.moments(1)];
    for slot in stored.slots() {
        let all = stored[slot].shape()[0];
        let own = own_part(mesh.replica(), all, slot, rank == 0);
        if own.is_empty() {
            continue;
        }
        // Where in a tensor of so many rows.
        let place = |x: &FloatTensor<B>| if x.shape()[0] == all { own.clone() } else { 0..own.len() };
        let value = ranks.data().map_or_else(|| stored[slot].clone(), |data| data.master(slot, &stored[slot]));
        let cut = |x: &FloatTensor<B>| rows_of::<B>(x.clone(), &place(x));
        let (value, first, second) = (cut(&value), cut(&both[0][slot]), cut(&both[1][slot]));
        let mut at = 0;
        for slice in of_rows(&named, slot, config.n_layers, &own) {
            let rows = at..at + slice.sizes[0];
            at = rows.end;
            weights.push((slice.clone(), rows_of::<B>(value.clone(), &rows)));
            for (which, moment) in MOMENTS.iter().zip([&first, &second]) {
                let name = format!("{which}.{}", slice.name);
                moments.push((Slice { name, ..slice.clone() }, rows_of::<B>(moment.clone(), &rows)));
            }
        }
    }
    let mut files = RankFiles::default();
    for (prefix, tensors) in [(MODEL_SLICES, &weights), (OPTIM_SLICES, &moments)] {
        if tensors.is_empty() {
            continue; // more ranks than rows
        }
        let slices: Vec<Slice> = tensors.iter().map(|(slice, _)| slice.clone()).collect();
        let file = format!("{prefix}{rank:05}.safetensors");
        files.write(dir, &file, &slices, &mut |i| Ok(to_bytes::<B>(tensors[i].1.clone()).into()))?;
    }
    Ok(files)
}

/// The moments that this rank keeps, from a checkpoint of any number of ranks.
pub(super) fn load_moments<B: LlamaOps>(
    model: &Llama<B>,
    ranks: &Ranks<B>,
    source: &dyn TensorSource,
    device: &B::Device,
) -> Result<PerSlot<[FloatTensor<B>; 2]>> {
    let part = ranks.mesh().map_or(Part::WHOLE, |mesh| mesh.part());
    let (config, stored) = (model.config(), model.stored());
    let named = config.slices(part);
    let one = |slot: Slot, which: &str| -> Result<FloatTensor<B>> {
        let shape = stored[slot].shape().to_vec();
        let (kept, rows) = match ranks.data() {
            Some(data) => (data.state_shape(slot), data.kept_rows(slot)),
            None => (shape.clone(), 0..shape[0]),
        };
        let mut values = Vec::with_capacity(kept.iter().product());
        for slice in of_rows(&named, slot, config.n_layers, &rows) {
            values.extend(source.read_slice(&Slice { name: format!("{which}.{}", slice.name), ..slice })?);
        }
        values.resize(kept.iter().product(), 0.0); // shares are filled up
        Ok(from_f32::<B>(values, &kept, device))
    };
    B::resident(device, || {
        let read = stored.slots().map(|slot| Ok([one(slot, MOMENTS[0])?, one(slot, MOMENTS[1])?]));
        let mut read = read.collect::<Result<Vec<_>>>()?.into_iter();
        Ok(PerSlot::from_fn(config.n_layers, |_| read.next().unwrap_or_else(|| unreachable!("as many as there are slots"))))
    })
}
