//! What the demo has measured, as a table for people.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::download::Download;

/// All that is shown.
#[derive(Debug)]
pub(super) struct Figures {
    /// Conversion and push together.
    pub(super) convert: Duration,
    /// A first run, after which there is a machine to go on from.
    pub(super) first_run: Duration,
    pub(super) report: Report,
    /// From the start of `nydusbox run` on.
    pub(super) first_output: Duration,
    /// What the registry has sent until the run was over.
    pub(super) sent_bytes: u64,
    pub(super) download: Download,
    /// The original image's layers.
    pub(super) packed_bytes: u64,
}

/// What `nydusbox run --report` writes, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    image_ms: f64,
    sandbox_start_ms: f64,
    mounts: Vec<Mount>,
    boot_ms: f64,
    command_ms: f64,
    stop_ms: f64,
    bytes_read_guest: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Mount {
    mountpoint: String,
    ms: f64,
}

impl Report {
    /// Steps and their times, in milliseconds.
    fn rows(&self) -> Vec<(String, f64)> {
        let mut rows = vec![
            ("pull of manifest and bootstrap".to_owned(), self.image_ms),
            ("start of the sandbox".to_owned(), self.sandbox_start_ms),
        ];
        let mounts = self.mounts.iter();
        rows.extend(mounts.map(|mount| (format!("mount of {}", mount.mountpoint), mount.ms)));
        rows.push(("boot, or going on from one".to_owned(), self.boot_ms));
        rows.push(("command".to_owned(), self.command_ms));
        rows.push(("stop".to_owned(), self.stop_ms));
        rows
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let mut rows = vec![
            ("conversion and push".to_owned(), ms(self.convert)),
            ("a first run, of `true`".to_owned(), ms(self.first_run)),
        ];
        rows.extend(self.report.rows());
        let width = rows.iter().map(|(step, _)| step.len()).max().unwrap_or(0);
        for (step, ms) in rows {
            writeln!(f, "{step:width$}  {ms:10.1} ms")?;
        }
        if let Some(read) = self.report.bytes_read_guest {
            writeln!(f, "the guest was given {} of file content", megabytes(read))?;
        }
        let download = &self.download;
        let everything = download.download + download.unpack + download.boot;
        let name = "everything first";
        writeln!(
            f,
            "\n{:20}  {:>12}  {:>17}",
            "", "first output", "from the registry"
        )?;
        for (way, time, bytes) in [
            ("as it is read", self.first_output, self.sent_bytes),
            (name, everything, download.sent_bytes),
        ] {
            writeln!(f, "{way:20}  {:>12}  {:>17}", seconds(time), megabytes(bytes))?;
        }
        writeln!(
            f,
            "{name}: skopeo copy {}, umoci unpack {}, then the same machine on that directory {}",
            seconds(download.download),
            seconds(download.unpack),
            seconds(download.boot),
        )?;
        writeln!(
            f,
            "the image: {} compressed, {} unpacked",
            megabytes(self.packed_bytes),
            megabytes(download.unpacked_bytes),
        )
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn figures_are_shown_step_by_step_and_beside_each_other() {
        let report: Report = serde_json::from_str(
            r#"{"image_ms": 31.26, "sandbox_start_ms": 5.04, "mounts": [{"mountpoint": "/containers", "ms": 0.5}],
                "boot_ms": 4000.0, "command_ms": 1200.25, "stop_ms": 80, "bytes_read_backend": 12345678,
                "bytes_read_guest": null, "image_bytes": 70000000, "added_later": true}"#,
        )
        .unwrap();
        let figures = Figures {
            convert: Duration::from_millis(2500),
            first_run: Duration::from_millis(3500),
            report,
            first_output: Duration::from_millis(4120),
            sent_bytes: 12_345_678,
            download: Download {
                download: Duration::from_millis(2000),
                unpack: Duration::from_millis(4040),
                boot: Duration::from_millis(4010),
                sent_bytes: 63_400_000,
                unpacked_bytes: 170_400_000,
            },
            packed_bytes: 63_364_602,
        };
        let expected = "\
conversion and push                 2500.0 ms
a first run, of `true`              3500.0 ms
pull of manifest and bootstrap        31.3 ms
start of the sandbox                   5.0 ms
mount of /containers                   0.5 ms
boot, or going on from one          4000.0 ms
command                             1200.2 ms
stop                                  80.0 ms

                      first output  from the registry
as it is read                4.1 s            12.3 MB
everything first            10.1 s            63.4 MB
everything first: skopeo copy 2.0 s, umoci unpack 4.0 s, then the same machine on that directory 4.0 s
the image: 63.4 MB compressed, 170.4 MB unpacked
";
        assert_eq!(figures.to_string(), expected);
    }
}
