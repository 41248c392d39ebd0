//! The metrics that Prometheus expects of any process, read from `/proc` at each scrape. What
//! cannot be read is left out.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// `USER_HZ`: the unit of times in `/proc/*/stat`, 100 on every Linux that runs containers.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(stat) = read("/proc/self/stat") {
            if let Some(ticks) = stat_field(&stat, 14).zip(stat_field(&stat, 15)) {
                let seconds = ConstCounter::new((ticks.0 + ticks.1) / TICKS_PER_SECOND);
                let kind = seconds.metric_type();
                let help = "CPU time of the process";
                seconds.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, kind)?)?;
            }
            let boot = read("/proc/stat").and_then(|text| value_after(&text, "btime"));
            if let Some((boot, ticks)) = boot.zip(stat_field(&stat, 22)) {
                let help = "When the process started, since the UNIX epoch";
                gauge(&mut encoder, "process_start_time_seconds", help, boot + ticks / TICKS_PER_SECOND)?;
            }
        }
        if let Some(kib) = read("/proc/self/status").and_then(|text| value_after(&text, "VmRSS:")) {
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory in use", kib * 1024.0)?;
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            #[expect(clippy::cast_precision_loss, reason = "the kernel allows far fewer descriptors")]
            let open = entries.count().saturating_sub(1) as f64; // the directory itself
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", open)?;
        }
        Ok(())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: f64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A field of `/proc/self/stat`, by its number in proc(5). The second is the command in
/// parentheses and may hold anything.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// The number after a word at the start of a line.
fn value_after(text: &str, word: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_with_spaces_and_parentheses_does_not_shift_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 0 0 20 0 1 0 999 1 2";
        assert_eq!(stat_field(stat, 14), Some(50.0));
        assert_eq!(stat_field(stat, 15), Some(60.0));
        assert_eq!(stat_field(stat, 22), Some(999.0));
        assert_eq!(stat_field("", 14), None);
        assert_eq!(value_after("a 1\nbtime 5\n", "btime"), Some(5.0));
        assert_eq!(value_after("a 1\n", "btime"), None);
    }
}
