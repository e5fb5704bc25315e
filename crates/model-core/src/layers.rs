//! A transformer layer, for every backend: its parts and the order in which they are computed.

pub(crate) mod rotary;
pub(crate) mod row_parallel;

use model_spec::{Activation, HeadLayout};
use tch::Tensor;

use crate::ModelError;
use crate::attention_context::AttentionContext;
use crate::kv_cache::KvCache;
use crate::layers::row_parallel::RowParallel;
use crate::ops::Moe;
use crate::ops::{
    AttentionOp, Epilogue, HeadNorms, Hidden, LinearOp, Norm, NormsOver, Rows, StepState, TrialLinear,
};

/// A part with the norm in front of it, where there is one.
pub(crate) type Normed<P> = (Option<Norm>, P);

/// One transformer layer, of any shape of its own. `x` is the residual stream, `n1` and `n2` norms.
#[expect(clippy::large_enum_variant, reason = "a model has some dozens of them")]
pub(crate) enum Layer<S: StepState> {
    /// `x += attention(n1(x))`, then `x += mlp(n2(x))`; either may be absent.
    Sequential {
        /// With `n1`, where there is one.
        attention: Option<Normed<AttentionPart<S>>>,
        /// With `n2`, where there is one.
        ffn: Option<Normed<Ffn<S>>>,
    },
    /// `x += attention(n1(x)) + mlp(n2(x))`.
    Parallel {
        /// `n1`.
        attention_norm: Norm,
        attention: Attention<S>,
        /// `n2`; None where the MLP reads the very rows that attention reads.
        mlp_norm: Option<Norm>,
        mlp: Mlp<S>,
    },
}

/// What is in the place of attention.
pub(crate) enum AttentionPart<S: StepState> {
    /// Attention.
    Attention(Box<Attention<S>>),
    /// One linear layer as wide as the residual stream.
    Linear(S::Linear),
}

/// `linear_qkv`, norms of the heads where the layer has them, attention, `linear_proj`.
pub(crate) struct Attention<S: StepState> {
    pub(crate) qkv: S::Linear,
    pub(crate) head_norms: Option<(HeadLayout, HeadNorms)>,
    pub(crate) op: S::Attention,
    pub(crate) proj: RowParallel<S>,
    /// What becomes of the output before it is added to the residual stream.
    pub(crate) output: OutputRule,
}

/// What becomes of an output before it is added to the residual stream.
#[derive(Debug, Default)]
pub(crate) struct OutputRule {
    /// It is normalised,
    pub(crate) post_norm: Option<Norm>,
    /// and multiplied, each rounded as in the originals.
    pub(crate) multiplier: Option<f64>,
}

/// The feed-forward part.
pub(crate) enum Ffn<S: StepState> {
    /// One MLP for every token.
    Dense(Mlp<S>),
    /// Several, of which a router chooses.
    Moe(Box<Moe<S>>),
    /// One linear layer as wide as the residual stream.
    Linear(S::Linear),
}

/// `linear_fc1`, its activation, `linear_fc2`.
pub(crate) struct Mlp<S: StepState> {
    pub(crate) fc1: S::Linear,
    pub(crate) activation: Activation,
    pub(crate) fc2: RowParallel<S>,
    /// What becomes of the output before it is added to the residual stream.
    pub(crate) output: OutputRule,
}

impl<S: StepState> Layer<S> {
    /// The norm that the stream goes through first, where that is the first thing done with it.
    pub(crate) fn first_norm(&self) -> Option<&Norm> {
        match self {
            Self::Sequential { attention: Some((norm, _)), .. } => norm.as_ref(),
            Self::Sequential { attention: None, ffn } => ffn.as_ref().and_then(|(norm, _)| norm.as_ref()),
            Self::Parallel { attention_norm, .. } => Some(attention_norm),
        }
    }

    /// The residual stream after this layer, in the memory of the one before it; `next` is the norm that it goes through
    /// then.
    pub(crate) fn forward(
        &self,
        mut hidden: Hidden,
        next: Option<&Norm>,
        step: &AttentionContext,
        cache: &mut KvCache,
        at: &mut S,
    ) -> Result<Hidden, ModelError> {
        match self {
            Self::Sequential { attention, ffn } => {
                if let Some((norm, attention)) = attention {
                    let x = hidden.inputs(norm.as_ref(), at)?;
                    let residual = hidden.residual;
                    hidden = match attention {
                        AttentionPart::Attention(attention) => {
                            let attended = attention.attend(&x, step, cache, at)?;
                            let next = ffn.as_ref().map_or(next, |(norm, _)| norm.as_ref());
                            attention.add_to(residual, attended, next, at)?
                        }
                        AttentionPart::Linear(linear) => {
                            Hidden::of(at.run_rows(linear, &x, Epilogue::AddTo(residual))?)
                        }
                    };
                }
                if let Some((norm, ffn)) = ffn {
                    hidden = match ffn {
                        Ffn::Dense(mlp) => {
                            let x = hidden.inputs(norm.as_ref(), at)?;
                            mlp.add_to(hidden.residual, &x, next, at)?
                        }
                        // A router reads them, too.
                        Ffn::Moe(moe) => {
                            let x = hidden.plain_inputs(norm.as_ref(), at)?;
                            Hidden::of(at.add_experts(moe, hidden.residual, &x)?)
                        }
                        Ffn::Linear(linear) => {
                            let x = hidden.inputs(norm.as_ref(), at)?;
                            Hidden::of(at.run_rows(linear, &x, Epilogue::AddTo(hidden.residual))?)
                        }
                    };
                }
                Ok(hidden)
            }
            Self::Parallel { attention_norm, attention, mlp_norm, mlp } => {
                let x = hidden.inputs(Some(attention_norm), at)?;
                let attended = attention.attend(&x, step, cache, at)?;
                let x = match mlp_norm {
                    Some(norm) => at.norm_rows(&hidden.residual, norm)?,
                    None => x,
                };
                let hidden = attention.add_to(hidden.residual, attended, None, at)?;
                mlp.add_to(hidden.residual, &x, next, at)
            }
        }
    }

    fn parts(&self) -> (Option<&Attention<S>>, Option<&Mlp<S>>) {
        match self {
            Self::Sequential { attention, ffn } => {
                let mlp = match ffn {
                    Some((_, Ffn::Dense(mlp))) => Some(mlp),
                    Some((_, Ffn::Moe(_) | Ffn::Linear(_))) | None => None,
                };
                let attention = match attention {
                    Some((_, AttentionPart::Attention(attention))) => Some(&**attention),
                    Some((_, AttentionPart::Linear(_))) | None => None,
                };
                (attention, mlp)
            }
            Self::Parallel { attention, mlp, .. } => (Some(attention), Some(mlp)),
        }
    }

    fn moe(&self) -> Option<&Moe<S>> {
        match self {
            Self::Sequential { ffn: Some((_, Ffn::Moe(moe))), .. } => Some(moe),
            _ => None,
        }
    }

    /// The linear layers that stand in the place of attention and MLP.
    fn replacements(&self) -> impl Iterator<Item = &S::Linear> {
        let [attention, ffn] = match self {
            Self::Sequential { attention, ffn } => [
                match attention {
                    Some((_, AttentionPart::Linear(linear))) => Some(linear),
                    _ => None,
                },
                match ffn {
                    Some((_, Ffn::Linear(linear))) => Some(linear),
                    _ => None,
                },
            ],
            Self::Parallel { .. } => [None, None],
        };
        attention.into_iter().chain(ffn)
    }

    /// Its attention, where it has one.
    pub(crate) fn attention(&self) -> Option<&S::Attention> {
        self.parts().0.map(|part| &part.op)
    }

    /// Its linear layers without routers and experts, each with the activation that follows it.
    pub(crate) fn dense_linears(&self) -> impl Iterator<Item = TrialLinear<'_, S::Linear>> {
        let (attention, mlp) = self.parts();
        fn plain<L>(linear: &L) -> TrialLinear<'_, L> {
            TrialLinear::of(linear, None)
        }
        let of_attention = attention
            .into_iter()
            .flat_map(|part| std::iter::once(plain(&part.qkv)).chain(part.proj.trials()));
        let of_mlp = mlp.into_iter().flat_map(|part| {
            let fc1 = TrialLinear::of(&part.fc1, Some(part.activation));
            std::iter::once(fc1).chain(part.fc2.trials())
        });
        of_attention
            .chain(of_mlp)
            .chain(self.replacements().map(plain))
            .chain(self.moe().into_iter().flat_map(Moe::dense_linears))
    }

    /// Memory that its weights take.
    pub(crate) fn size_bytes(&self) -> u64 {
        let norms = match self {
            Self::Sequential { attention, ffn } => {
                let of = |norm: &Option<Norm>| norm.as_ref().map(Norm::size_bytes).unwrap_or_default();
                [attention.as_ref().map(|(norm, _)| of(norm)), ffn.as_ref().map(|(norm, _)| of(norm))]
            }
            Self::Parallel { attention_norm, mlp_norm, .. } => {
                [Some(attention_norm.size_bytes()), mlp_norm.as_ref().map(Norm::size_bytes)]
            }
        };
        let (attention, mlp) = self.parts();
        let of_heads = attention.and_then(|part| part.head_norms.as_ref());
        let posts = [
            attention.and_then(|part| part.output.post_norm.as_ref()),
            mlp.and_then(|part| part.output.post_norm.as_ref()),
        ];
        let row_parallel = [attention.map(|part| &part.proj), mlp.map(|part| &part.fc2)];
        self.dense_linears().map(|trial| trial.linear.size_bytes()).sum::<u64>()
            + row_parallel.into_iter().flatten().map(RowParallel::bias_bytes).sum::<u64>()
            + self.moe().map_or(0, Moe::experts_bytes)
            + attention.map_or(0, |part| part.op.size_bytes())
            + of_heads.map_or(0, |(_, norms)| norms.query.size_bytes() + norms.key.size_bytes())
            + norms.into_iter().flatten().sum::<u64>()
            + posts.into_iter().flatten().map(Norm::size_bytes).sum::<u64>()
    }
}

impl<S: StepState> Attention<S> {
    /// `[num_tokens, hidden_size]` to the heads' outputs, `[num_tokens, query_size]`.
    fn attend(
        &self,
        x: &Rows,
        step: &AttentionContext,
        cache: &mut KvCache,
        at: &mut S,
    ) -> Result<Tensor, ModelError> {
        let mut qkv = at.run_rows(&self.qkv, x, Epilogue::Store)?;
        if let Some((heads, norms)) = &self.head_norms {
            match norms.over {
                NormsOver::AllHeads => qkv = norm_across_heads(&qkv, *heads, norms, at)?,
                NormsOver::EachHead | NormsOver::AnyHead => at.norm_heads(&mut qkv, *heads, norms)?,
            }
        }
        self.op.run(&qkv, step, cache, at)
    }

    /// `residual += linear_proj(attended)`; `next` is the norm that it goes through then.
    fn add_to(
        &self,
        residual: Tensor,
        attended: Tensor,
        next: Option<&Norm>,
        at: &mut S,
    ) -> Result<Hidden, ModelError> {
        add_output((&self.proj, &self.output), residual, &Rows::Plain(attended), next, at)
    }
}

/// Normalises all query heads of a row together, and all key heads, and leaves the values alone.
fn norm_across_heads<S: StepState>(
    qkv: &Tensor,
    heads: HeadLayout,
    norms: &HeadNorms,
    at: &mut S,
) -> Result<Tensor, ModelError> {
    let (num_tokens, width) = qkv.size2()?;
    let (groups, channels) = (heads.num_query_groups as i64, heads.kv_channels as i64);
    let queries = heads.queries_per_group() as i64;
    let grouped = qkv.f_view([num_tokens, groups, queries + 2, channels])?;
    let mut normed = |norm: &Norm, start, len: i64| -> Result<Tensor, ModelError> {
        let rows = grouped.f_narrow(2, start, len)?.f_reshape([num_tokens, groups * len * channels])?;
        Ok(at.norm(&rows.f_contiguous()?, norm)?.f_view([num_tokens, groups, len, channels])?)
    };
    let query = normed(&norms.query, 0, queries)?;
    let key = normed(&norms.key, queries, 1)?;
    let value = grouped.f_narrow(2, queries + 1, 1)?;
    Ok(Tensor::f_cat(&[query, key, value], 2)?.f_view([num_tokens, width])?)
}

/// Adds the output of the last linear layer of a part, or what becomes of it, to the residual stream.
fn add_output<S: StepState>(
    (linear, rule): (&RowParallel<S>, &OutputRule),
    mut residual: Tensor,
    x: &Rows,
    next: Option<&Norm>,
    at: &mut S,
) -> Result<Hidden, ModelError> {
    if rule.post_norm.is_none() && rule.multiplier.is_none() {
        return linear.add_to(residual, x, next, at);
    }
    let mut output = linear.output(x, residual.kind(), at)?;
    if let Some(norm) = &rule.post_norm {
        output = at.norm(&output, norm)?;
    }
    if let Some(multiplier) = rule.multiplier {
        output = output.f_mul_scalar(multiplier)?;
    }
    let _ = residual.f_add_(&output)?;
    Ok(Hidden::of(residual))
}

impl<S: StepState> Mlp<S> {
    /// `residual += mlp(x)`; `next` is the norm that it goes through then.
    fn add_to(
        &self,
        residual: Tensor,
        x: &Rows,
        next: Option<&Norm>,
        at: &mut S,
    ) -> Result<Hidden, ModelError> {
        let activated = Rows::Plain(at.run_rows(&self.fc1, x, Epilogue::Activate(self.activation))?);
        add_output((&self.fc2, &self.output), residual, &activated, next, at)
    }
}
