//! The `exp_manager` section: which loggers there are, and where a run leaves what.
//!
//! Follows NeMo's `exp_manager.py`. What concerns training checkpoints has no meaning here; results of a run are
//! continued by `output`, whose folder `generations` is left alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::range::out_of_range;
use super::raw::RawExpManager;
use crate::exit::Failure;
use crate::output::ExistingOutput;

/// What `exp_manager` asks for.
#[derive(Clone, Debug)]
pub(crate) struct ExpManagerPlan {
    pub(crate) log_dir: PathBuf,
    pub(crate) existing_output: ExistingOutput,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) tensorboard: Option<TensorBoardPlan>,
    pub(crate) wandb: Option<WandbPlan>,
    /// `files_to_copy`: into the log folder, at the start.
    pub(crate) files_to_copy: Vec<PathBuf>,
}

/// `create_tensorboard_logger` and `summary_writer_kwargs`.
#[derive(Clone, Debug, Default)]
pub(crate) struct TensorBoardPlan {
    pub(crate) filename_suffix: String,
}

/// `create_wandb_logger` and `wandb_logger_kwargs`.
#[derive(Clone, Debug, Default)]
pub(crate) struct WandbPlan {
    pub(crate) project: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) entity: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) job_type: Option<String>,
    pub(crate) notes: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) id: Option<String>,
    /// The log folder when absent.
    pub(crate) save_dir: Option<PathBuf>,
}

impl ExpManagerPlan {
    /// Checks the section.
    pub(crate) fn new(raw: RawExpManager) -> Result<Self, Failure> {
        refuse_other_loggers(&raw)?;
        if raw.log_local_rank_0_only == Some(true) && raw.log_global_rank_0_only == Some(true) {
            return Err(Failure::usage(
                "`exp_manager.log_local_rank_0_only` and `exp_manager.log_global_rank_0_only` are both true; \
                 set one of them to false",
            ));
        }
        let time_limit = raw.max_time_per_run.as_deref().map(|text| {
            parse_time_limit(text).ok_or_else(|| {
                out_of_range("exp_manager.max_time_per_run", "`DD:HH:MM:SS`", &format!("`{text}`"))
            })
        });
        let tensorboard = (raw.create_tensorboard_logger != Some(false))
            .then(|| TensorBoardPlan::new(raw.summary_writer_kwargs.as_ref()))
            .transpose()?;
        let wandb = (raw.create_wandb_logger == Some(true))
            .then(|| WandbPlan::new(raw.wandb_logger_kwargs.as_ref()))
            .transpose()?;
        Ok(Self {
            log_dir: log_dir(&raw),
            existing_output: match raw.resume_if_exists {
                Some(false) => ExistingOutput::MoveAside,
                _ => ExistingOutput::Continue,
            },
            time_limit: time_limit.transpose()?,
            tensorboard,
            wandb,
            files_to_copy: raw.files_to_copy.unwrap_or_default(),
        })
    }
}

/// `explicit_log_dir`, or else `<exp_dir>/<name>/<version>` with the original's defaults.
fn log_dir(raw: &RawExpManager) -> PathBuf {
    if let Some(explicit) = &raw.explicit_log_dir {
        return explicit.clone();
    }
    let mut folder = raw.exp_dir.clone().unwrap_or_else(|| PathBuf::from("nemo_experiments"));
    folder.push(raw.name.as_deref().unwrap_or("default"));
    if let Some(version) = &raw.version {
        folder.push(version);
    }
    folder
}

fn refuse_other_loggers(raw: &RawExpManager) -> Result<(), Failure> {
    let others = [
        ("create_mlflow_logger", raw.create_mlflow_logger),
        ("create_dllogger_logger", raw.create_dllogger_logger),
        ("create_clearml_logger", raw.create_clearml_logger),
        ("create_neptune_logger", raw.create_neptune_logger),
    ];
    match others.into_iter().find(|&(_, wanted)| wanted == Some(true)) {
        Some((key, _)) => Err(Failure::usage(format!(
            "`exp_manager.{key}=true`: there are only TensorBoard and Weights & Biases; set it to false, or use \
             `exp_manager.create_tensorboard_logger` or `exp_manager.create_wandb_logger`"
        ))),
        None => Ok(()),
    }
}

/// A logger's keyword arguments, taken out one by one.
struct Kwargs<'a> {
    block: &'static str,
    left: BTreeMap<&'a str, &'a Value>,
}

impl<'a> Kwargs<'a> {
    fn new(block: &'static str, values: Option<&'a BTreeMap<String, Value>>) -> Self {
        let left = values.into_iter().flatten().map(|(key, value)| (key.as_str(), value)).collect();
        Self { block, left }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, Failure> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            // An id or a name of digits only is a number to YAML.
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => {
                Err(out_of_range(&format!("{}.{key}", self.block), "a string or null", &format!("`{other}`")))
            }
        }
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>, Failure> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(value) => value
                .as_array()
                .and_then(|list| list.iter().map(text).collect::<Option<Vec<_>>>())
                .ok_or_else(|| {
                    let key = format!("{}.{key}", self.block);
                    out_of_range(&key, "a list of strings or null", &format!("`{value}`"))
                }),
        }
    }

    /// Says what was not taken.
    fn finish(self) {
        for (key, _) in self.left.into_iter().filter(|(_, value)| !value.is_null()) {
            tracing::warn!("`{}.{key}` has no effect", self.block);
        }
    }
}

impl TensorBoardPlan {
    fn new(kwargs: Option<&BTreeMap<String, Value>>) -> Result<Self, Failure> {
        let mut kwargs = Kwargs::new("exp_manager.summary_writer_kwargs", kwargs);
        if kwargs.left.contains_key("log_dir") {
            return Err(Failure::usage(
                "`exp_manager.summary_writer_kwargs` must not have `log_dir`: events go to \
                 `exp_manager.explicit_log_dir`",
            ));
        }
        let filename_suffix = kwargs.text("filename_suffix")?.unwrap_or_default();
        if filename_suffix.contains('/') {
            let key = "exp_manager.summary_writer_kwargs.filename_suffix";
            return Err(out_of_range(key, "part of a file name", &format!("`{filename_suffix}`")));
        }
        kwargs.finish();
        Ok(Self { filename_suffix })
    }
}

impl WandbPlan {
    const BLOCK: &'static str = "exp_manager.wandb_logger_kwargs";

    fn new(values: Option<&BTreeMap<String, Value>>) -> Result<Self, Failure> {
        let has = |key: &str| values.is_some_and(|values| values.contains_key(key));
        if !has("name") && !has("project") {
            return Err(Failure::usage(format!(
                "`exp_manager.create_wandb_logger=true` needs `{0}.name` or `{0}.project`; both may be null",
                Self::BLOCK
            )));
        }
        let mut kwargs = Kwargs::new(Self::BLOCK, values);
        let id = match (kwargs.text("id")?, kwargs.text("version")?) {
            (Some(id), _) | (None, Some(id)) => Some(id),
            (None, None) => None,
        };
        let is_plain = |id: &String| {
            !id.is_empty()
                && id.len() <= 64
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if let Some(id) = id.as_ref().filter(|id| !is_plain(id)) {
            let key = format!("{}.id", Self::BLOCK);
            return Err(out_of_range(&key, "at most 64 letters, digits, `-` and `_`", &format!("`{id}`")));
        }
        let plan = Self {
            project: kwargs.text("project")?,
            name: kwargs.text("name")?,
            entity: kwargs.text("entity")?,
            group: kwargs.text("group")?,
            job_type: kwargs.text("job_type")?,
            notes: kwargs.text("notes")?,
            tags: kwargs.texts("tags")?,
            id,
            save_dir: kwargs.text("save_dir")?.or(kwargs.text("dir")?).map(PathBuf::from),
        };
        kwargs.finish();
        Ok(plan)
    }
}

/// `YYYYMMDD_HHMMSS`, UTC.
pub(crate) fn date_and_time(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that a leap day is a year's last; 719,468 days lie between year 0 and 1970.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}_{hour:02}{minute:02}{second:02}")
}

/// Reads `DD:HH:MM:SS`.
fn parse_time_limit(text: &str) -> Option<Duration> {
    let fields: Vec<u64> = text.split(':').map(|field| field.trim().parse().ok()).collect::<Option<_>>()?;
    let [days, hours, minutes, seconds] = fields[..] else { return None };
    let hours = days.checked_mul(24)?.checked_add(hours)?;
    let minutes = hours.checked_mul(60)?.checked_add(minutes)?;
    Some(Duration::from_secs(minutes.checked_mul(60)?.checked_add(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits() {
        assert_eq!(parse_time_limit("00:03:30:00"), Some(Duration::from_secs(12_600)));
        assert_eq!(parse_time_limit("1:0:0:1"), Some(Duration::from_secs(86_401)));
        for bad in ["", "1:2:3", "1:2:3:4:5", "a:0:0:0", "-1:0:0:0", "99999999999999999:0:0:0"] {
            assert_eq!(parse_time_limit(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates() {
        let at = |seconds: u64| date_and_time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101_000000");
        assert_eq!(at(951_782_399), "20000228_235959");
        assert_eq!(at(951_782_400), "20000229_000000");
        assert_eq!(at(951_868_800), "20000301_000000");
        assert_eq!(at(1_795_645_601), "20261125_222641");
        assert_eq!(at(4_107_542_400), "21000301_000000");
    }
}
