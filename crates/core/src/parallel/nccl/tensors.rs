//! Collective operations over tensors where they lie: nothing crosses the host, and the host waits for nothing.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use super::NcclGroup;
use super::device::{DeviceTensors, Landing};
use super::library::Element;
use crate::error::Result;
use crate::model::regions::Handle;
use crate::ops::LlamaOps;
use crate::parallel::collectives::{Collectives, Watch};
use crate::parallel::comm::{Communicator, Operation, Reduce};

/// Over device memory. Sums are made in the tensors' type: the weights' gradients are float32, what crosses inside of a split layer is of
/// the products' type.
pub struct OnDevice<B: LlamaOps> {
    group: NcclGroup,
    tensors: Arc<dyn DeviceTensors<B>>,
    watch: Watch,
    overlap: bool,
}

/// The elements' type.
pub(super) fn element(dtype: DType) -> Result<Element, String> {
    match dtype {
        DType::F16 => Ok(Element::F16),
        DType::BF16 => Ok(Element::BF16),
        DType::F32 => Ok(Element::F32),
        DType::F64 => Ok(Element::F64),
        other => Err(format!("tensors of {other:?} do not cross")),
    }
}

impl<B: LlamaOps> OnDevice<B> {
    /// Over a group, if the backend's tensors lie on its device. Without `overlap` computation waits for each operation at once.
    pub fn of(group: NcclGroup, watch: Watch, overlap: bool) -> Option<Self> {
        let tensors = group.shared().device.tensors().downcast::<Arc<dyn DeviceTensors<B>>>().ok()?;
        Some(Self { group, tensors: *tensors, watch, overlap })
    }

    /// `rows`: of the result, in parts of those of `x`.
    fn handle(&self, operation: Operation, x: FloatTensor<B>, rows: [usize; 2]) -> Handle<B> {
        match self.start(operation, x, rows) {
            Ok(handle) => handle,
            Err(e) => Handle::Started(Box::new(move || Err(e))),
        }
    }

    fn start(&self, operation: Operation, x: FloatTensor<B>, rows: [usize; 2]) -> Result<Handle<B>> {
        let failed = |problem: String| self.group.refuse(operation, problem);
        let (element, len) = (element(x.dtype()).map_err(failed)?, x.shape().num_elements());
        let mut shape = x.shape().to_vec();
        shape[0] = shape[0] * rows[0] / rows[1];
        // A sum of all is written over what is summed, where nobody else reads that.
        let (lent, from, (to, land)): (_, _, Landing<B>) = match rows == [1, 1] {
            true => match self.tensors.in_place(x) {
                Ok(landing) => (None, landing.0.clone(), landing),
                Err(x) => self.beside(x, &shape).map_err(failed)?,
            },
            false => self.beside(x, &shape).map_err(failed)?,
        };
        let started = self.group.start_on_device(operation, (element, len), [from, to], Box::new(lent), self.watch.clone())?;
        let wait = move || {
            started.wait()?;
            Ok(land())
        };
        Ok(if self.overlap { Handle::Started(Box::new(wait)) } else { Handle::Ready(wait()?) })
    }

    #[allow(clippy::type_complexity)]
    fn beside(
        &self,
        x: FloatTensor<B>,
        shape: &[usize],
    ) -> Result<(Option<FloatTensor<B>>, super::device::Memory, Landing<B>), String> {
        let (x, from) = self.tensors.lend(x)?;
        let landing = self.tensors.land(&x, shape);
        Ok((Some(x), from, landing))
    }
}

impl<B: LlamaOps> Collectives<B> for OnDevice<B> {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn all_reduce(&self, x: FloatTensor<B>) -> Handle<B> {
        self.handle(Operation::AllReduce(Reduce::Sum), x, [1, 1])
    }

    fn reduce_scatter(&self, x: FloatTensor<B>) -> Handle<B> {
        self.handle(Operation::ReduceScatter(Reduce::Sum), x, [1, self.size()])
    }

    fn all_gather(&self, x: FloatTensor<B>) -> Handle<B> {
        self.handle(Operation::AllGather, x, [self.size(), 1])
    }
}
