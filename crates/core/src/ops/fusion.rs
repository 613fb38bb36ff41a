//! Burn's `Fusion<B>`, which its default features wrap around the GPU backends: each operation is a step of Burn's stream, run by
//! `B`'s own kernels. Burn fuses nothing across such a step; what lies between them it does.

use std::fmt;
use std::marker::PhantomData;

use burn::tensor::DType;
use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionHandle, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use super::{AdamWScalars, AdamWState, AttentionSaved, Gemm, LlamaOps, SelfAttention, WeightPart};

/// A step's operands as `B` has them, in the order in which they were given.
struct Operands<B: Backend> {
    floats: std::vec::IntoIter<FloatTensor<B>>,
    ints: std::vec::IntoIter<IntTensor<B>>,
}

impl<B: Backend> Operands<B> {
    fn float(&mut self) -> FloatTensor<B> {
        self.floats.next().expect("as many as were given")
    }

    fn int(&mut self) -> IntTensor<B> {
        self.ints.next().expect("as many as were given")
    }
}

struct Step<B, F> {
    ir: CustomOpIr,
    /// How many of the inputs are floats; they come first.
    floats: usize,
    run: F,
    backend: PhantomData<B>,
}

impl<B, F> fmt::Debug for Step<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ir.id)
    }
}

impl<B, F, const N: usize> Operation<B::FusionRuntime> for Step<B, F>
where
    B: FusionBackend,
    F: Fn(&mut Operands<B>) -> [FloatTensor<B>; N] + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<FusionHandle<B::FusionRuntime>>) {
        let (floats, ints) = self.ir.inputs.split_at(self.floats);
        let floats: Vec<_> = floats.iter().map(|x| handles.get_float_tensor::<B>(x)).collect();
        let ints: Vec<_> = ints.iter().map(|x| handles.get_int_tensor::<B>(x)).collect();
        let made = (self.run)(&mut Operands { floats: floats.into_iter(), ints: ints.into_iter() });
        for (out, x) in self.ir.outputs.iter().zip(made) {
            assert_eq!((&out.shape, out.dtype), (&x.shape(), x.dtype()), "{}", self.ir.id);
            handles.register_float_tensor::<B>(&out.id, x);
        }
    }
}

/// Puts a step at the end of the stream. `outs`: what `run` will give.
fn step<B: FusionBackend, const N: usize>(
    name: &'static str,
    floats: Vec<FusionTensor<B::FusionRuntime>>,
    ints: Vec<FusionTensor<B::FusionRuntime>>,
    outs: [(Vec<usize>, DType); N],
    run: impl Fn(&mut Operands<B>) -> [FloatTensor<B>; N] + Send + Sync + 'static,
) -> [FusionTensor<B::FusionRuntime>; N] {
    let client = floats.iter().chain(&ints).next().expect("a step has operands").client.clone();
    // Before the operands are turned into descriptions, which gives them up.
    let streams = OperationStreams::with_inputs(floats.iter().chain(&ints));
    let outs = outs.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape.into(), dtype));
    let count = floats.len();
    let inputs: Vec<TensorIr> = floats.into_iter().chain(ints).map(FusionTensor::into_ir).collect();
    let ir = CustomOpIr::new(name, &inputs, &outs);
    let step = Step::<B, _> { ir: ir.clone(), floats: count, run, backend: PhantomData };
    let made = client.register(streams, OperationIr::Custom(ir), step);
    made.try_into().unwrap_or_else(|_| unreachable!("one tensor for each output"))
}

/// [`step`] with one output.
fn one<B: FusionBackend>(
    name: &'static str,
    floats: Vec<FusionTensor<B::FusionRuntime>>,
    ints: Vec<FusionTensor<B::FusionRuntime>>,
    out: (Vec<usize>, DType),
    run: impl Fn(&mut Operands<B>) -> FloatTensor<B> + Send + Sync + 'static,
) -> FusionTensor<B::FusionRuntime> {
    let [y] = step::<B, 1>(name, floats, ints, [out], move |x| [run(x)]);
    y
}

/// Shape and type of an output that is like a tensor.
fn like(x: &impl TensorMetadata) -> (Vec<usize>, DType) {
    (x.shape().to_vec(), x.dtype())
}

/// `[rows of a, columns of b]`.
fn product(a: usize, b: usize, dtype: DType) -> (Vec<usize>, DType) {
    (vec![a, b], dtype)
}

impl<B: FusionBackend + LlamaOps> LlamaOps for Fusion<B> {
    fn matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let rank = a.shape.num_dims();
        let mut shape: Vec<usize> = (0..rank).map(|i| a.shape[i].max(b.shape[i])).collect();
        (shape[rank - 2], shape[rank - 1]) = (a.shape[rank - 2], b.shape[rank - 1]);
        let dtype = a.dtype;
        one::<B>("matmul", vec![a, b], vec![], (shape, dtype), |x| B::matmul(x.float(), x.float()))
    }

    fn project(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        let y = product(x.shape[0], w.shape[0], out);
        one::<B>("project", vec![x, w], vec![], y, move |x| B::project(x.float(), x.float(), out))
    }
    fn project_add(y: FloatTensor<Self>, x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        let out = like(&y);
        one::<B>("project_add", vec![y, x, w], vec![], out, |x| B::project_add(x.float(), x.float(), x.float()))
    }
    fn project_backward_input(dy: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        let dx = product(dy.shape[0], w.shape[1], out);
        one::<B>("project_backward_input", vec![dy, w], vec![], dx, move |x| B::project_backward_input(x.float(), x.float(), out))
    }
    fn project_backward_weight(dy: FloatTensor<Self>, x: FloatTensor<Self>, sum: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        let dw = product(dy.shape[1], x.shape[1], DType::F32);
        let operands = [dy, x].into_iter().chain(sum).collect();
        one::<B>("project_backward_weight", operands, vec![], dw, |x| {
            B::project_backward_weight(x.float(), x.float(), x.floats.next())
        })
    }

    fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64, out: DType) -> FloatTensor<Self> {
        let y = (x.shape.to_vec(), out);
        one::<B>("rms_norm", vec![x, w], vec![], y, move |x| B::rms_norm(x.float(), x.float(), eps, out))
    }
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        eps: f64,
        add: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let outs = [like(&x), (w.shape.to_vec(), DType::F32)];
        let operands = [x, w, dy].into_iter().chain(add).collect();
        let [dx, dw] = step::<B, 2>("rms_norm_backward", operands, vec![], outs, move |x| {
            B::rms_norm_backward(x.float(), x.float(), x.float(), eps, x.floats.next()).into()
        });
        (dx, dw)
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotated: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let y = like(&x);
        one::<B>("rope", vec![x, cos, sin], vec![], y, move |x| B::rope(x.float(), x.float(), x.float(), rotated, inverse))
    }

    fn swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = product(gate_up.shape[0], gate_up.shape[1] / 2, gate_up.dtype);
        one::<B>("swiglu", vec![gate_up], vec![], y, |x| B::swiglu(x.float()))
    }
    fn swiglu_backward(gate_up: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        let dx = like(&gate_up);
        one::<B>("swiglu_backward", vec![gate_up, dy], vec![], dx, |x| B::swiglu_backward(x.float(), x.float()))
    }

    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        doc_starts: Option<IntTensor<Self>>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [batch, heads, seq, _] = q.shape.dims();
        let outs = [like(&q), (vec![batch, heads, seq, 1], DType::F32)];
        let doc_starts = doc_starts.into_iter().collect();
        let [out, lse] = step::<B, 2>("attention_forward", vec![q, k, v], doc_starts, outs, move |x| {
            B::attention_forward(x.float(), x.float(), x.float(), x.ints.next(), scale).into()
        });
        (out, lse)
    }
    fn attention_backward(saved: AttentionSaved<Self>, dout: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        let AttentionSaved { q, k, v, doc_starts, out, lse, scale } = saved;
        let outs = [&q, &k, &v].map(like);
        let (operands, doc_starts) = (vec![q, k, v, out, lse, dout], doc_starts.into_iter().collect());
        step::<B, 3>("attention_backward", operands, doc_starts, outs, move |x| {
            let [q, k, v, out, lse, dout] = std::array::from_fn(|_| x.float());
            B::attention_backward(AttentionSaved { q, k, v, doc_starts: x.ints.next(), out, lse, scale }, dout)
        })
    }
    fn self_attention_forward(qkv: FloatTensor<Self>, s: SelfAttention<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let SelfAttention { kv_heads, doc_starts, scale } = s;
        let [batch, seq, all, head_dim] = qkv.shape.dims();
        let heads = all - 2 * kv_heads;
        let outs = [(vec![batch, seq, heads, head_dim], qkv.dtype), (vec![batch, heads, seq, 1], DType::F32)];
        let doc_starts = doc_starts.into_iter().collect();
        let [out, lse] = step::<B, 2>("self_attention_forward", vec![qkv], doc_starts, outs, move |x| {
            B::self_attention_forward(x.float(), SelfAttention { kv_heads, doc_starts: x.ints.next(), scale }).into()
        });
        (out, lse)
    }
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        s: SelfAttention<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        dout: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let SelfAttention { kv_heads, doc_starts, scale } = s;
        let dqkv = like(&qkv);
        let (operands, doc_starts) = (vec![qkv, out, lse, dout], doc_starts.into_iter().collect());
        one::<B>("self_attention_backward", operands, doc_starts, dqkv, move |x| {
            let s = SelfAttention { kv_heads, doc_starts: x.ints.next(), scale };
            B::self_attention_backward(x.float(), s, x.float(), x.float(), x.float())
        })
    }

    fn logit_stats(logits: FloatTensor<Self>, targets: IntTensor<Self>, first: usize) -> FloatTensor<Self> {
        let stats = product(logits.shape[0], 3, DType::F32);
        one::<B>("logit_stats", vec![logits], vec![targets], stats, move |x| B::logit_stats(x.float(), x.int(), first))
    }
    fn logit_grad(
        logits: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        targets: IntTensor<Self>,
        first: usize,
        scale: f64,
        out: DType,
    ) -> FloatTensor<Self> {
        let grad = (logits.shape.to_vec(), out);
        one::<B>("logit_grad", vec![logits, stats], vec![targets], grad, move |x| {
            B::logit_grad(x.float(), x.float(), x.int(), first, scale, out)
        })
    }
    fn logit_rows(vocab: usize) -> usize {
        B::logit_rows(vocab)
    }

    fn embed(ids: IntTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        let y = product(ids.shape[0], w.shape[1], out);
        one::<B>("embed", vec![w], vec![ids], y, move |x| B::embed(x.int(), x.float(), out))
    }
    fn embed_backward(
        ids: IntTensor<Self>,
        order: IntTensor<Self>,
        dx: FloatTensor<Self>,
        sum: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let dw = like(&sum);
        one::<B>("embed_backward", vec![dx, sum], vec![ids, order], dw, |x| {
            B::embed_backward(x.int(), x.int(), x.float(), x.float())
        })
    }

    fn element_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        one::<B>("element_sum", vec![x], vec![], (vec![1], DType::F32), |x| B::element_sum(x.float()))
    }
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        one::<B>("square_sum", vec![x], vec![], (vec![1], DType::F32), |x| B::square_sum(x.float()))
    }
    fn adamw_step(state: AdamWState<Self>, grad: FloatTensor<Self>, s: AdamWScalars) -> AdamWState<Self> {
        let AdamWState { w, m, v, copy } = state;
        let run = move |x: &mut Operands<B>| {
            let [w, m, v, grad] = std::array::from_fn(|_| x.float());
            B::adamw_step(AdamWState { w, m, v, copy: x.floats.next() }, grad, s)
        };
        let outs = [&w, &m, &v].map(like);
        let Some(copy) = copy else {
            let [w, m, v] = step::<B, 3>("adamw_step", vec![w, m, v, grad], vec![], outs, move |x| {
                let AdamWState { w, m, v, .. } = run(x);
                [w, m, v]
            });
            return AdamWState { w, m, v, copy: None };
        };
        let [ow, om, ov] = outs;
        let outs = [ow, om, ov, like(&copy)];
        let [w, m, v, copy] = step::<B, 4>("adamw_step with copy", vec![w, m, v, grad, copy], vec![], outs, move |x| {
            let AdamWState { w, m, v, copy } = run(x);
            [w, m, v, copy.expect("a copy went in")]
        });
        AdamWState { w, m, v, copy: Some(copy) }
    }

    fn project_parts(x: FloatTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
        let (y, parts) = (product(x.shape[0], parts.iter().map(|part| part.rows).sum(), out), parts.to_vec());
        one::<B>("project_parts", vec![x], vec![], y, move |x| B::project_parts(x.float(), &parts, out))
    }
    fn project_parts_add(y: FloatTensor<Self>, x: FloatTensor<Self>, parts: &[WeightPart]) -> FloatTensor<Self> {
        let (out, parts) = (like(&y), parts.to_vec());
        one::<B>("project_parts_add", vec![y, x], vec![], out, move |x| B::project_parts_add(x.float(), x.float(), &parts))
    }
    fn embed_parts(ids: IntTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
        let (y, parts) = (product(ids.shape[0], parts.first().map_or(0, |part| part.width), out), parts.to_vec());
        one::<B>("embed_parts", vec![], vec![ids], y, move |x| B::embed_parts(x.int(), &parts, out))
    }
    fn take_weight(parts: Vec<WeightPart>, device: &Self::Device) -> Vec<WeightPart> {
        B::take_weight(parts, device)
    }
    fn weight_bytes(part: &WeightPart) -> Vec<u8> {
        B::weight_bytes(part)
    }
    fn float_of(part: &WeightPart) -> Option<DType> {
        B::float_of(part)
    }

    fn flush_uploads(device: &Self::Device) {
        B::flush_uploads(device);
    }

    fn resident<T>(device: &Self::Device, make: impl FnOnce() -> T) -> T {
        B::resident(device, || {
            let made = make();
            // The stream is lazy: it has to have run before the memory counts as made. A failure comes out of the next read.
            let _ = Self::sync(device);
            made
        })
    }
    fn gemms(device: &Self::Device) -> Vec<(Gemm, Option<String>)> {
        B::gemms(device)
    }
    fn pool_bytes(device: &Self::Device) -> Option<u64> {
        B::pool_bytes(device)
    }
    fn largest_page(device: &Self::Device) -> Option<u64> {
        B::largest_page(device)
    }
    fn bodies() -> &'static str {
        B::bodies()
    }
}
