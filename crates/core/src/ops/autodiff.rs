//! The operations under `Autodiff<B>`: each is one node of the graph, with a backward written by hand that calls `B`'s.

use std::convert::Infallible;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Tensor, TensorMetadata};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{AttentionSaved, LlamaOps, Rotary, SelfAttention, attention, cast, loss, primitive, tensor};

/// Runs `forward` as one node: tracked, it gives the output and what backward keeps; untracked, the output alone.
macro_rules! node {
    ($op:expr, $strategy:ty, [$($parent:ident),+], $tracked:expr, $untracked:expr) => {
        match $op.prepare::<$strategy>([$($parent.node.clone()),+]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (state, output) = $tracked;
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish($untracked),
        }
    };
}

#[derive(Debug)]
struct LinearNode;
impl<B: LlamaOps> Backward<B, 2> for LinearNode {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let (x, w) = ops.state;
        let dy = cast::<B>(grads.consume::<B>(&ops.node), w.dtype());
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::project_backward_input(dy.clone(), w.clone(), x.dtype()));
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, cast::<B>(B::project_backward_weight(dy, x, None), w.dtype()));
        }
    }
}

#[derive(Debug)]
struct RmsNormNode;
impl<B: LlamaOps> Backward<B, 2> for RmsNormNode {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, w, eps) = ops.state;
        let w_dtype = w.dtype();
        let (dx, dw) = B::rms_norm_backward(x, w, dy, eps, None);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, cast::<B>(dw, w_dtype));
        }
    }
}

/// What leads from the residual stream to the product is computed again, as the paper does it (Touvron et al. 2023, section 2.4).
#[derive(Debug)]
struct NormLinearNode;
impl<B: LlamaOps> Backward<B, 3> for NormLinearNode {
    type State = ([FloatTensor<B>; 3], f64);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, gain_node, w_node] = ops.parents;
        let ([x, gain, w], eps) = ops.state;
        let dtype = w.dtype();
        let dy = cast::<B>(grads.consume::<B>(&ops.node), dtype);
        if let Some(node) = w_node {
            let normed = B::rms_norm(x.clone(), gain.clone(), eps, dtype);
            grads.register::<B>(node.id, cast::<B>(B::project_backward_weight(dy.clone(), normed, None), dtype));
        }
        if x_node.is_none() && gain_node.is_none() {
            return;
        }
        let gain_dtype = gain.dtype();
        let (dx, dgain) = B::rms_norm_backward(x, gain, B::project_backward_input(dy, w, dtype), eps, None);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = gain_node {
            grads.register::<B>(node.id, cast::<B>(dgain, gain_dtype));
        }
    }
}

#[derive(Debug)]
struct RopeNode;
impl<B: LlamaOps> Backward<B, 1> for RopeNode {
    type State = (Rotary<B>, usize, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (Rotary { cos, sin }, rotated, inverse) = ops.state;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::rope(dy, cos, sin, rotated, !inverse));
        }
    }
}

#[derive(Debug)]
struct SwiGluNode;
impl<B: LlamaOps> Backward<B, 1> for SwiGluNode {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        if let Some(node) = node {
            grads.register::<B>(node.id, B::swiglu_backward(ops.state, dy));
        }
    }
}

/// The SwiGLU is computed again.
#[derive(Debug)]
struct SwiGluLinearNode;
impl<B: LlamaOps> Backward<B, 2> for SwiGluLinearNode {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [gate_up_node, w_node] = ops.parents;
        let [gate_up, w] = ops.state;
        let dtype = w.dtype();
        let dy = cast::<B>(grads.consume::<B>(&ops.node), dtype);
        if let Some(node) = w_node {
            let swiglu = B::swiglu(gate_up.clone());
            grads.register::<B>(node.id, cast::<B>(B::project_backward_weight(dy.clone(), swiglu, None), dtype));
        }
        if let Some(node) = gate_up_node {
            let dswiglu = B::project_backward_input(dy, w, gate_up.dtype());
            grads.register::<B>(node.id, B::swiglu_backward(gate_up, dswiglu));
        }
    }
}

#[derive(Debug)]
struct AttentionNode;
impl<B: LlamaOps> Backward<B, 3> for AttentionNode {
    type State = AttentionSaved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = grads.consume::<B>(&ops.node);
        for (node, grad) in ops.parents.into_iter().zip(B::attention_backward(ops.state, dout)) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

/// What the backward of [`LlamaOps::self_attention`] needs of its forward.
#[derive(Clone, Debug)]
struct SelfAttentionSaved<B: LlamaOps> {
    qkv: FloatTensor<B>,
    rotary: Rotary<B>,
    s: SelfAttention<B>,
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
}

#[derive(Debug)]
struct SelfAttentionNode;
impl<B: LlamaOps> Backward<B, 1> for SelfAttentionNode {
    type State = SelfAttentionSaved<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dout = grads.consume::<B>(&ops.node);
        let SelfAttentionSaved { qkv, rotary, s, out, lse } = ops.state;
        if let Some(node) = node {
            let kv_heads = s.kv_heads;
            let grad = B::self_attention_backward(qkv, s, out, lse, dout);
            grads.register::<B>(node.id, attention::rotate::<B>(grad, rotary, kv_heads, true));
        }
    }
}

/// Its gradients are made in the forward pass, for a loss gradient of 1.
#[derive(Debug)]
struct CrossEntropyNode;
impl<B: LlamaOps> Backward<B, 2> for CrossEntropyNode {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dloss: Tensor<B, 2> = tensor::<B, 1>(grads.consume::<B>(&ops.node)).reshape([1, 1]);
        for (node, grad) in ops.parents.into_iter().zip(ops.state) {
            if let Some(node) = node {
                let grad = tensor::<B, 2>(grad);
                let scale = dloss.clone().cast(grad.dtype());
                grads.register::<B>(node.id, primitive(grad * scale));
            }
        }
    }
}

impl<B: LlamaOps, C: CheckpointStrategy> LlamaOps for Autodiff<B, C> {
    fn project(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        node!(
            LinearNode,
            C,
            [x, w],
            ((x.primitive.clone(), w.primitive.clone()), B::project(x.primitive, w.primitive, out)),
            B::project(x.primitive, w.primitive, out)
        )
    }

    fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64, out: DType) -> FloatTensor<Self> {
        node!(
            RmsNormNode,
            C,
            [x, w],
            ((x.primitive.clone(), w.primitive.clone(), eps), B::rms_norm(x.primitive, w.primitive, eps, out)),
            B::rms_norm(x.primitive, w.primitive, eps, out)
        )
    }

    fn norm_project(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        w: FloatTensor<Self>,
        eps: f64,
        out: DType,
    ) -> FloatTensor<Self> {
        node!(
            NormLinearNode,
            C,
            [x, gain, w],
            {
                let [x, gain, w] = [x.primitive, gain.primitive, w.primitive];
                let saved = [x.clone(), gain.clone(), w.clone()];
                ((saved, eps), B::norm_project(x, gain, w, eps, out))
            },
            B::norm_project(x.primitive, gain.primitive, w.primitive, eps, out)
        )
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotated: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.primitive, sin.primitive);
        let table = || Rotary { cos: cos.clone(), sin: sin.clone() };
        node!(
            RopeNode,
            C,
            [x],
            ((table(), rotated, inverse), B::rope(x.primitive, cos.clone(), sin.clone(), rotated, inverse)),
            B::rope(x.primitive, cos.clone(), sin.clone(), rotated, inverse)
        )
    }

    fn swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        node!(SwiGluNode, C, [gate_up], (gate_up.primitive.clone(), B::swiglu(gate_up.primitive)), B::swiglu(gate_up.primitive))
    }

    fn swiglu_project(gate_up: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        node!(
            SwiGluLinearNode,
            C,
            [gate_up, w],
            ([gate_up.primitive.clone(), w.primitive.clone()], B::swiglu_project(gate_up.primitive, w.primitive, out)),
            B::swiglu_project(gate_up.primitive, w.primitive, out)
        )
    }

    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        node!(
            AttentionNode,
            C,
            [q, k, v],
            {
                let (q, k, v) = (q.primitive, k.primitive, v.primitive);
                let (out, lse) = B::attention_forward(q.clone(), k.clone(), v.clone(), None, scale);
                (AttentionSaved { q, k, v, doc_starts: None, out: out.clone(), lse, scale }, out)
            },
            B::attention_forward(q.primitive, k.primitive, v.primitive, None, scale).0
        )
    }

    fn self_attention(qkv: FloatTensor<Self>, rotary: Rotary<Self>, s: SelfAttention<Self>) -> FloatTensor<Self> {
        let rotary = Rotary { cos: rotary.cos.primitive, sin: rotary.sin.primitive };
        let s = SelfAttention { kv_heads: s.kv_heads, doc_starts: s.doc_starts, scale: s.scale };
        node!(
            SelfAttentionNode,
            C,
            [qkv],
            {
                let qkv = attention::rotate::<B>(qkv.primitive, rotary.clone(), s.kv_heads, false);
                let (out, lse) = B::self_attention_forward(qkv.clone(), s.clone());
                (SelfAttentionSaved { qkv, rotary: rotary.clone(), s: s.clone(), out: out.clone(), lse }, out)
            },
            B::self_attention(qkv.primitive, rotary.clone(), s.clone())
        )
    }

    fn linear_cross_entropy(x: FloatTensor<Self>, w: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        node!(
            CrossEntropyNode,
            C,
            [x, w],
            {
                let whole = |stats| Ok::<_, Infallible>(stats);
                let Ok(grads) = loss::forward_backward::<B, _>(x.primitive, w.primitive, targets, 1.0, None, 0, &whole);
                ([grads.dx, grads.dw], grads.loss)
            },
            B::linear_cross_entropy(x.primitive, w.primitive, targets)
        )
    }

    fn bodies() -> &'static str {
        B::bodies()
    }
}
