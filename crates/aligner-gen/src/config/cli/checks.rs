//! Flags that stand for keys of the configuration.

use clap::Args;
use hydra_config::overrides::{Override, OverrideKind};
use hydra_config::{Node, overrides};

use super::JobArgs;
use crate::exit::Failure;

/// Flags that are keys of the configuration.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct CheckArgs {
    /// Check every finished response with this command of the shell (`model.generation.on_response`)
    #[arg(long, value_name = "CMD")]
    pub(crate) on_response: Option<String>,
    /// Keep the best response to each prompt, by `mean_logprob`, `sum_logprob` or `score`
    /// (`model.generation.best_of_n`)
    #[arg(long, value_name = "BY")]
    pub(crate) best_of_n: Option<String>,
    /// Estimate pass@k for these numbers, `1,8` for example (`model.generation.pass_at_k`)
    #[arg(long, value_name = "K,…", value_delimiter = ',')]
    pub(crate) pass_at_k: Vec<u32>,
}

impl CheckArgs {
    /// What they set, as overrides: texts stand for themselves, whatever is in them.
    fn all(&self) -> Vec<Override> {
        let mut all = Vec::new();
        let mut set = |flag: &str, key: &str, value: Node, typed: &str| {
            all.push(Override {
                kind: OverrideKind::ForceAdd,
                key: key.to_owned(),
                package: None,
                value: Some(value),
                text: format!("{flag} {typed}"),
            });
        };
        let text = |typed: &str| Node::from(overrides::without_interpolation(typed).as_str());
        if let Some(command) = &self.on_response {
            set("--on-response", "model.generation.on_response", text(command), command);
        }
        if let Some(by) = &self.best_of_n {
            set("--best-of-n", "model.generation.best_of_n", text(by), by);
        }
        if !self.pass_at_k.is_empty() {
            let numbers = self.pass_at_k.iter().map(|&k| Node::Int(i64::from(k))).collect();
            let typed: Vec<String> = self.pass_at_k.iter().map(u32::to_string).collect();
            set("--pass-at-k", "model.generation.pass_at_k", Node::List(numbers), &typed.join(","));
        }
        all
    }
}

impl JobArgs {
    /// The overrides that flags stand for.
    ///
    /// # Errors
    /// When a key is set both ways.
    pub(crate) fn flag_overrides(&self) -> Result<Vec<Override>, Failure> {
        let all = self.checks.all();
        for change in &all {
            let is_typed = |text: &&String| {
                let typed = text.trim_start_matches(['+', '~']).strip_prefix(&change.key);
                typed.is_some_and(|rest| rest.starts_with('='))
            };
            if let Some(typed) = self.overrides.iter().find(is_typed) {
                let flag = change.text.split(' ').next().unwrap_or_default();
                return Err(Failure::usage(format!(
                    "`{flag}` and `{typed}` set the same: leave one of them out"
                )));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(on_response: &str) -> CheckArgs {
        CheckArgs { on_response: Some(on_response.to_owned()), best_of_n: None, pass_at_k: vec![1, 8] }
    }

    #[test]
    fn flags_are_overrides_that_stand_for_themselves() {
        let all = flags(r#"awk '{print "${1}"}' # a=b"#).all();
        let found: Vec<_> = all.iter().map(|change| (change.key.as_str(), change.value.clone())).collect();
        let expect = [
            ("model.generation.on_response", Some(Node::from(r#"awk '{print "\${1}"}' # a=b"#))),
            ("model.generation.pass_at_k", Some(Node::List(vec![Node::Int(1), Node::Int(8)]))),
        ];
        assert_eq!(found, expect);
        assert_eq!(all[1].text, "--pass-at-k 1,8");
        assert!(CheckArgs::default().all().is_empty());
    }
}
