//! The CPU as a device: what computes is the thread that gives jobs, and jobs run at once.

use std::any::Any;
use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorMetadata, TensorPrimitive};
use recua::backend::Flex;
use recua::parallel::nccl::{DeviceTensors, Event, Landing, LaunchDevice, LaunchJob, Launching, Memory};

use super::fake::{Fake, FakeMemory};

/// The device of a rank.
pub(crate) struct FakeDevice(pub(crate) Arc<Fake>);

impl LaunchDevice for FakeDevice {
    fn submit(&self, job: LaunchJob) {
        job(&mut OnThread(&self.0));
    }

    fn tensors(&self) -> Box<dyn Any> {
        Box::new(Arc::new(FlexTensors(self.0.clone())) as Arc<dyn DeviceTensors<Flex>>)
    }
}

struct OnThread<'a>(&'a Fake);

impl Launching for OnThread<'_> {
    fn address(&mut self, memory: &Memory) -> Result<u64, String> {
        Ok(memory.0.downcast_ref::<Arc<FakeMemory>>().unwrap().address())
    }

    fn record(&mut self, event: Event) -> Result<(), String> {
        self.0.note(format!("computation records {}", event.0));
        let event = self.0.event(event);
        event.come_to(event.record());
        Ok(())
    }

    fn wait(&mut self, event: Event) -> Result<(), String> {
        self.0.note(format!("computation waits for {}", event.0));
        let event = self.0.event(event);
        let count = event.counts.lock().unwrap().0;
        event.wait(count);
        Ok(())
    }
}

struct FlexTensors(Arc<Fake>);

fn bytes_of(x: &FloatTensor<Flex>) -> Vec<u8> {
    let flat = Tensor::<Flex, 1>::from_primitive(TensorPrimitive::Float(
        <Flex as burn::tensor::ops::FloatTensorOps<Flex>>::float_reshape(x.clone(), [x.shape().num_elements()].into()),
    ));
    flat.into_data().bytes.to_vec()
}

impl FlexTensors {
    fn landing(&self, bytes: Vec<u8>, shape: Vec<usize>, dtype: DType) -> Landing<Flex> {
        let memory = self.0.memory(bytes);
        let kept = memory.clone();
        let land = move || {
            let data = TensorData::from_bytes_vec(kept.read(), shape.clone(), dtype);
            // Ranks of two are all that crosses, but for vectors.
            let flat = Tensor::<Flex, 1>::from_data(
                TensorData { shape: [shape.iter().product::<usize>()].into(), ..data },
                (&Default::default(), dtype),
            );
            <Flex as burn::tensor::ops::FloatTensorOps<Flex>>::float_reshape(flat.into_primitive().tensor(), shape.into())
        };
        (Memory(Arc::new(memory)), Box::new(land))
    }
}

impl DeviceTensors<Flex> for FlexTensors {
    fn lend(&self, x: FloatTensor<Flex>) -> Result<(FloatTensor<Flex>, Memory), String> {
        let memory = self.0.memory(bytes_of(&x));
        Ok((x, Memory(Arc::new(memory))))
    }

    fn land(&self, like: &FloatTensor<Flex>, shape: &[usize]) -> Landing<Flex> {
        let bytes = vec![0xff; shape.iter().product::<usize>() * like.dtype().size()];
        self.landing(bytes, shape.to_vec(), like.dtype())
    }

    fn in_place(&self, x: FloatTensor<Flex>) -> Result<Landing<Flex>, FloatTensor<Flex>> {
        // Every second one, by chance of its size: both ways are taken.
        if x.shape().num_elements().is_multiple_of(2) {
            Ok(self.landing(bytes_of(&x), x.shape().to_vec(), x.dtype()))
        } else {
            Err(x)
        }
    }
}
