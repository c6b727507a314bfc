//! What the system says of this process. Where it says nothing (another system than Linux), there is nothing.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use super::metric::Reading;
use super::table::{CPU_TIME, MEMORY, MOST_FILES, OPEN_FILES, STARTED};

/// When this process began, as near as it can tell.
pub static BEGUN: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);

/// Clock ticks in a second: what Linux counts CPU time for programs in, on every machine.
const TICKS: f64 = 100.0;

/// What is known of it now.
pub fn readings() -> Vec<Reading> {
    let begun = BEGUN.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut readings = vec![Reading::new(&STARTED).with(&[], begun)];
    let known = [(&CPU_TIME, cpu()), (&MEMORY, memory()), (&OPEN_FILES, files()), (&MOST_FILES, most_files())];
    readings.extend(known.into_iter().filter_map(|(metric, value)| Some(Reading::new(metric).with(&[], value?))));
    readings
}

fn cpu() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in brackets, may hold blanks.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS)
}

fn memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<u64>().ok()? as f64 * 1024.0)
}

fn files() -> Option<f64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

fn most_files() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metric::Value;

    #[test]
    fn the_process_knows_itself() {
        let readings = readings();
        let value = |name: &str| {
            let reading = readings.iter().find(|r| r.metric.page == name).unwrap();
            match reading.points[0].value {
                Value::Number(number) => number,
                Value::Spread(_) => f64::NAN,
            }
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") > value("process_open_fds"));
        assert!(value("process_cpu_seconds") >= 0.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
    }
}
