//! The operations under `Autodiff<B>`: each is one node of the graph, with a backward written by hand that calls `B`'s.

use burn::tensor::Tensor;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use super::{AttentionSaved, LlamaOps, linear, primitive, tensor};

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
struct Linear;
impl<B: LlamaOps> Backward<B, 2> for Linear {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, w) = ops.state;
        let (dx, dw) = linear::backward::<B>(x, w, dy);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, dw);
        }
    }
}

#[derive(Debug)]
struct RmsNorm;
impl<B: LlamaOps> Backward<B, 2> for RmsNorm {
    type State = (FloatTensor<B>, FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, w, eps) = ops.state;
        let (dx, dw) = B::rms_norm_backward(x, w, dy, eps);
        if let Some(node) = x_node {
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, dw);
        }
    }
}

#[derive(Debug)]
struct Rope;
impl<B: LlamaOps> Backward<B, 1> for Rope {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (cos, sin) = ops.state;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::rope(dy, cos, B::float_neg(sin)));
        }
    }
}

#[derive(Debug)]
struct SwiGlu;
impl<B: LlamaOps> Backward<B, 2> for SwiGlu {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [gate_node, up_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (gate, up) = ops.state;
        let (dgate, dup) = B::swiglu_backward(gate, up, dy);
        if let Some(node) = gate_node {
            grads.register::<B>(node.id, dgate);
        }
        if let Some(node) = up_node {
            grads.register::<B>(node.id, dup);
        }
    }
}

#[derive(Debug)]
struct Attention;
impl<B: LlamaOps> Backward<B, 3> for Attention {
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

/// Its gradients are made in the forward pass, for a loss gradient of 1.
#[derive(Debug)]
struct CrossEntropy;
impl<B: LlamaOps> Backward<B, 2> for CrossEntropy {
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
    fn project(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        node!(
            Linear,
            C,
            [x, w],
            ((x.primitive.clone(), w.primitive.clone()), B::project(x.primitive, w.primitive)),
            B::project(x.primitive, w.primitive)
        )
    }

    fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        node!(
            RmsNorm,
            C,
            [x, w],
            ((x.primitive.clone(), w.primitive.clone(), eps), B::rms_norm(x.primitive, w.primitive, eps)),
            B::rms_norm(x.primitive, w.primitive, eps)
        )
    }

    fn rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let (cos, sin) = (cos.primitive, sin.primitive);
        node!(Rope, C, [x], ((cos.clone(), sin.clone()), B::rope(x.primitive, cos, sin)), B::rope(x.primitive, cos, sin))
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        node!(
            SwiGlu,
            C,
            [gate, up],
            ((gate.primitive.clone(), up.primitive.clone()), B::swiglu(gate.primitive, up.primitive)),
            B::swiglu(gate.primitive, up.primitive)
        )
    }

    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        node!(
            Attention,
            C,
            [q, k, v],
            {
                let (q, k, v) = (q.primitive, k.primitive, v.primitive);
                let (out, lse) = B::attention_forward(q.clone(), k.clone(), v.clone(), scale);
                (AttentionSaved { q, k, v, out: out.clone(), lse, scale }, out)
            },
            B::attention_forward(q.primitive, k.primitive, v.primitive, scale).0
        )
    }

    fn linear_cross_entropy(x: FloatTensor<Self>, w: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        node!(
            CrossEntropy,
            C,
            [x, w],
            {
                let [loss, dx, dw] = B::linear_cross_entropy_grad(x.primitive, w.primitive, targets);
                ([dx, dw], loss)
            },
            B::linear_cross_entropy(x.primitive, w.primitive, targets)
        )
    }

    fn bodies() -> &'static str {
        B::bodies()
    }
}
