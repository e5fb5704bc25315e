//! Speed and memory over time, read back from the TensorBoard events of all runs on a log folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost::Message;

use super::framing::read_tf_record;
use super::tensorboard_proto::Event;

/// How the run was after a committed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SeriesPoint {
    /// Since 1970.
    pub(crate) at_seconds: f64,
    pub(crate) consumed_samples: f64,
    pub(crate) tokens_per_second: f64,
    /// Of the process of rank 0.
    pub(crate) resident_bytes: f64,
}

/// The points of all runs in the order of time. A record that is cut off or damaged ends its file: a run may be writing.
pub(crate) fn read_series(log_dir: &Path) -> io::Result<Vec<SeriesPoint>> {
    let mut points = Vec::new();
    for path in event_files(log_dir)? {
        let bytes = fs::read(path)?;
        let mut rest = bytes.as_slice();
        while let Some((payload, after)) = read_tf_record(rest) {
            rest = after;
            points.extend(Event::decode(payload).ok().and_then(|event| point(&event)));
        }
    }
    points.sort_by(|a, b| a.at_seconds.total_cmp(&b.at_seconds));
    Ok(points)
}

/// Those of the last run, and those of earlier ones, which were moved into `run_<n>`.
fn event_files(log_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let names = |folder: &Path| -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let starts = |path: &Path, start: &str| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
    };
    let mut files = Vec::new();
    for path in names(log_dir)? {
        if path.is_dir() && starts(&path, "run_") {
            files.extend(names(&path)?);
        } else {
            files.push(path);
        }
    }
    files.retain(|path| starts(path, "events.out.tfevents.") && path.is_file());
    files.sort();
    Ok(files)
}

fn point(event: &Event) -> Option<SeriesPoint> {
    let summary = event.summary.as_ref()?;
    let scalar = |tag: &str| {
        let value = summary.value.iter().find(|value| value.tag == tag)?;
        value.simple_value.map(f64::from)
    };
    Some(SeriesPoint {
        at_seconds: event.wall_time,
        consumed_samples: scalar("generation/consumed_samples")?,
        tokens_per_second: scalar("generation/output_tokens_per_second")?,
        resident_bytes: scalar("memory/resident_bytes").unwrap_or(0.0),
    })
}

#[cfg(test)]
mod tests {
    use super::super::framing::tf_record;
    use super::super::tensorboard_proto::{Summary, SummaryValue};
    use super::*;

    fn event(at: f64, speed: f32) -> Vec<u8> {
        let value = |(tag, number): (&str, f32)| SummaryValue {
            tag: tag.to_owned(),
            simple_value: Some(number),
            ..SummaryValue::default()
        };
        let values = [
            ("generation/consumed_samples", 4.0),
            ("generation/output_tokens_per_second", speed),
            ("memory/resident_bytes", 1e6),
        ];
        let summary = Some(Summary { value: values.map(value).to_vec() });
        tf_record(&Event { wall_time: at, step: 1, summary, ..Event::default() }.encode_to_vec())
    }

    #[test]
    fn all_runs_are_read_and_torn_ends_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("run_0")).unwrap();
        let name = "events.out.tfevents.0000000001.host.1.0";
        let header = tf_record(
            &Event { file_version: Some("brain.Event:2".to_owned()), ..Event::default() }.encode_to_vec(),
        );
        fs::write(folder.path().join("run_0").join(name), [header, event(5.0, 50.0)].concat()).unwrap();
        let torn = event(8.0, 1.0);
        let now = [event(6.0, 60.0), event(7.0, 70.0), torn[..torn.len() - 3].to_vec()].concat();
        fs::write(folder.path().join(name), now).unwrap();
        fs::write(folder.path().join("nemo_log.txt"), "x").unwrap();
        let points = read_series(folder.path()).unwrap();
        let speeds: Vec<f64> = points.iter().map(|point| point.tokens_per_second).collect();
        assert_eq!(speeds, [50.0, 60.0, 70.0]);
        let mut damaged = event(6.0, 60.0);
        damaged[20] ^= 1;
        fs::write(folder.path().join(name), damaged).unwrap();
        assert_eq!(read_series(folder.path()).unwrap().len(), 1);
    }
}
