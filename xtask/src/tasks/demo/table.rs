//! The report of `nydusbox run`, as a table for people.

use std::fmt;

use serde::Deserialize;

/// What `nydusbox run --report` writes, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    sandbox_start_ms: f64,
    mounts: Vec<Mount>,
    boot_ms: f64,
    command_ms: f64,
    stop_ms: f64,
    bytes_read_backend: Option<u64>,
    bytes_read_guest: Option<u64>,
    image_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Mount {
    mountpoint: String,
    ms: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![("start of the sandbox".to_owned(), self.sandbox_start_ms)];
        rows.extend(
            self.mounts
                .iter()
                .map(|mount| (format!("mount of {}", mount.mountpoint), mount.ms)),
        );
        rows.push(("boot".to_owned(), self.boot_ms));
        rows.push(("command".to_owned(), self.command_ms));
        rows.push(("stop".to_owned(), self.stop_ms));
        let width = rows.iter().map(|(step, _)| step.len()).max().unwrap_or(0);
        for (step, ms) in rows {
            writeln!(f, "{step:width$}  {ms:10.1} ms")?;
        }
        if let Some(read) = self.bytes_read_guest {
            writeln!(f, "the guest was given {:.1} MB of file content", megabytes(read))?;
        }
        if let Some(read) = self.bytes_read_backend {
            let (read, whole) = (megabytes(read), megabytes(self.image_bytes));
            writeln!(f, "read {read:.1} MB of the image's {whole:.1} MB")?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn a_report_is_shown_step_by_step() {
        let report: Report = serde_json::from_str(
            r#"{"sandbox_start_ms": 5.04, "mounts": [{"mountpoint": "/containers", "ms": 0.5}], "boot_ms": 4000.0,
                "command_ms": 1200.25, "stop_ms": 80, "bytes_read_backend": 12345678, "bytes_read_guest": null,
                "image_bytes": 70000000, "added_later": true}"#,
        )
        .unwrap();
        let expected = "\
start of the sandbox         5.0 ms
mount of /containers         0.5 ms
boot                      4000.0 ms
command                   1200.2 ms
stop                        80.0 ms
read 12.3 MB of the image's 70.0 MB
";
        assert_eq!(report.to_string(), expected);
    }
}
