//! Collective operations (sum, gather, scatter) over tensors on a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorMetadata};
use half::{bf16, f16};

#[cfg(feature = "nccl")]
use super::comm::Call;
use super::comm::{Buffer, Communicator, Completion, Pending, Reduce};
use super::trace::Trace;
use crate::error::{Error, Result};
use crate::model::regions::Handle;
use crate::ops::{LlamaOps, primitive, tensor};

/// Collective operations of a group of ranks over tensors. Each starts and returns a [`Handle`].
pub trait Collectives<B: LlamaOps>: Send + Sync {
    /// This rank in the group.
    fn rank(&self) -> usize;
    /// Ranks of the group.
    fn size(&self) -> usize;
    /// The sum over all ranks.
    fn all_reduce(&self, x: FloatTensor<B>) -> Handle<B>;
    /// Of the sum over all ranks this rank's part of the rows (the first dimension, a multiple of the number of ranks).
    fn reduce_scatter(&self, x: FloatTensor<B>) -> Handle<B>;
    /// The rows of all ranks one below the other, as many of each.
    fn all_gather(&self, x: FloatTensor<B>) -> Handle<B>;
}

/// What a rank's communication came to.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes: AtomicU64,
    busy_ns: AtomicU64,
    waited_ns: AtomicU64,
}

/// [`Traffic`] at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrafficSum {
    /// Bytes given to operations.
    pub bytes: u64,
    /// Seconds in which an operation was under way, one at a time.
    pub busy_s: f64,
    /// Seconds in which computation waited for one.
    pub waited_s: f64,
}

impl Traffic {
    /// So far.
    pub fn sum(&self) -> TrafficSum {
        let seconds = |x: &AtomicU64| x.load(Ordering::Relaxed) as f64 * 1e-9;
        TrafficSum {
            bytes: self.bytes.load(Ordering::Relaxed),
            busy_s: seconds(&self.busy_ns),
            waited_s: seconds(&self.waited_ns),
        }
    }

    fn add(to: &AtomicU64, time: Duration) {
        to.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// What all groups of a rank share.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Sums.
    pub traffic: Arc<Traffic>,
    /// Spans of time, where they are asked for.
    pub trace: Option<Arc<Trace>>,
}

impl Watch {
    /// Notes an operation on a device: when it was under way, and when computation there began to wait for it.
    #[cfg(feature = "nccl")]
    pub(super) fn note(&self, call: &Call, bytes: usize, [began, ended]: [Instant; 2], asked: Option<Instant>) {
        self.traffic.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Traffic::add(&self.traffic.busy_ns, ended - began);
        let waited = asked.filter(|asked| *asked < ended);
        if let Some(asked) = waited {
            Traffic::add(&self.traffic.waited_ns, ended - asked);
        }
        if let Some(trace) = &self.trace {
            trace.communication(call, began, ended, bytes);
            if let Some(asked) = waited {
                trace.waiting(call, asked, ended);
            }
        }
    }

    /// Waits for an operation and notes what it took.
    fn wait(&self, pending: Pending, bytes: usize) -> Result<Buffer> {
        let call = pending.call().clone();
        let asked = Instant::now();
        let Completion { result, began, ended } = pending.complete();
        let got = Instant::now();
        self.traffic.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Traffic::add(&self.traffic.busy_ns, ended - began);
        Traffic::add(&self.traffic.waited_ns, got - asked);
        if let Some(trace) = &self.trace {
            trace.communication(&call, began, ended, bytes);
            trace.waiting(&call, asked, got);
        }
        result
    }
}

/// Over host memory: right for every backend whose tensors can be read.
pub struct Hosted {
    comm: Arc<dyn Communicator>,
    watch: Watch,
    /// Whether computation goes on while operations are under way.
    overlap: bool,
}

impl Hosted {
    /// Over these ranks. Without `overlap` each operation ends before the call returns.
    pub fn new(comm: Arc<dyn Communicator>, watch: Watch, overlap: bool) -> Self {
        Self { comm, watch, overlap }
    }

    fn handle<B: LlamaOps>(
        &self,
        x: FloatTensor<B>,
        rows: [usize; 2],
        sums: bool,
        start: impl FnOnce(Buffer) -> Pending,
    ) -> Handle<B> {
        let (device, dtype) = (B::float_device(&x), x.dtype());
        let mut shape = x.shape().to_vec();
        shape[0] = shape[0] * rows[0] / rows[1];
        let pending = to_host::<B>(x, sums).map(|buffer| (buffer.bytes(), start(buffer)));
        let watch = self.watch.clone();
        let wait = move || {
            let (bytes, pending) = pending?;
            from_host::<B>(watch.wait(pending, bytes)?, &shape, dtype, &device)
        };
        if self.overlap {
            return Handle::Started(Box::new(wait));
        }
        match wait() {
            Ok(x) => Handle::Ready(x),
            Err(e) => Handle::Started(Box::new(move || Err(e))),
        }
    }
}

impl<B: LlamaOps> Collectives<B> for Hosted {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.size()
    }

    fn all_reduce(&self, x: FloatTensor<B>) -> Handle<B> {
        self.handle(x, [1, 1], true, |buffer| self.comm.all_reduce(buffer, Reduce::Sum))
    }

    fn reduce_scatter(&self, x: FloatTensor<B>) -> Handle<B> {
        self.handle(x, [1, self.comm.size()], true, |buffer| self.comm.reduce_scatter(buffer, Reduce::Sum))
    }

    fn all_gather(&self, x: FloatTensor<B>) -> Handle<B> {
        self.handle(x, [self.comm.size(), 1], false, |buffer| self.comm.all_gather(buffer))
    }
}

/// A tensor's elements on the host; 16-bit floats are widened to be summed, and go as they are otherwise.
fn to_host<B: LlamaOps>(x: FloatTensor<B>, sums: bool) -> Result<Buffer> {
    let n = x.shape().num_elements();
    let name = B::name(&B::float_device(&x));
    let failed = |problem: String| Error::Backend {
        name: name.clone(),
        problem: format!("a tensor could not be read: {problem}"),
        hint: "go on from the last checkpoint with --resume; `recua selftest` checks the device".into(),
    };
    let data = tensor::<B, 1>(B::float_reshape(x, [n].into())).try_into_data().map_err(|e| failed(format!("{e:?}")))?;
    let data = if sums { data.convert::<f32>() } else { data };
    let buffer = match data.dtype {
        DType::BF16 => data.into_vec::<bf16>().map(|x| Buffer::U16(x.into_iter().map(bf16::to_bits).collect())),
        DType::F16 => data.into_vec::<f16>().map(|x| Buffer::U16(x.into_iter().map(f16::to_bits).collect())),
        _ => data.convert::<f32>().into_vec::<f32>().map(Buffer::F32),
    };
    buffer.map_err(|e| failed(format!("{e:?}")))
}

fn from_host<B: LlamaOps>(buffer: Buffer, shape: &[usize], dtype: DType, device: &B::Device) -> Result<FloatTensor<B>> {
    let n = buffer.len();
    let expected = shape.iter().product::<usize>();
    if n != expected {
        return Err(Error::internal("a collective", format!("expected {expected} elements of {shape:?}, got {n}")));
    }
    let data = match (buffer, dtype) {
        (Buffer::F32(x), _) => TensorData::new(x, [n]),
        (Buffer::U16(x), DType::BF16) => TensorData::new(x.into_iter().map(bf16::from_bits).collect::<Vec<_>>(), [n]),
        (Buffer::U16(x), DType::F16) => TensorData::new(x.into_iter().map(f16::from_bits).collect::<Vec<_>>(), [n]),
        (other, _) => return Err(Error::internal("a collective", format!("{} came back for {dtype:?}", other.kind()))),
    };
    let x = Tensor::<B, 1>::from_data(data, (device, dtype));
    Ok(B::float_reshape(primitive(x), shape.to_vec().into()))
}
