//! The last lines of a stream, for an error that must show why a process ended.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes kept of a stream.
const KEPT_BYTES: usize = 16 << 10;
/// Lines shown of what is kept.
const SHOWN_LINES: usize = 25;

/// The end of a stream so far.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.drain(..self.0.len().saturating_sub(KEPT_BYTES));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        lines(&self.0)
    }
}

/// Reads `stream` to its end and returns its last lines.
pub(super) async fn of_stream(mut stream: impl AsyncRead + Unpin) -> Vec<String> {
    let mut tail = Tail::default();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        tail.push(&buffer[..read]);
    }
    tail.lines()
}

fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    // What a kernel says when it gives up begins with the reason, and goes on for longer than is shown.
    let panic = lines.iter().rposition(|line| line.contains("Kernel panic"));
    let start = lines.len().saturating_sub(SHOWN_LINES);
    let start = panic.map_or(start, |panic| panic.min(start));
    let shown = &lines[start..(start + SHOWN_LINES).min(lines.len())];
    // A guest's console may carry escape sequences; they must not reach the operator's terminal.
    shown
        .iter()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_of_much_output() {
        let many: String = (0..5000).map(|n| format!("line {n}\r\n")).collect();
        let last = of_stream(many.as_bytes()).await;
        assert_eq!(last.len(), SHOWN_LINES);
        assert_eq!(last[SHOWN_LINES - 1], "line 4999");
    }

    #[test]
    fn of_a_kernel_that_gave_up_the_reason_is_shown() {
        let mut text: String = (0..50).map(|n| format!("line {n}\n")).collect();
        text.push_str("[    2.1] Kernel panic - not syncing: Attempted to kill init!\n");
        text.extend((0..40).map(|n| format!("trace {n}\n")));
        let shown = lines(text.as_bytes());
        assert_eq!(shown.len(), SHOWN_LINES);
        assert!(shown[0].ends_with("Attempted to kill init!"), "{shown:?}");
        // Close to the end, there is room for what came before.
        let shown = lines(b"one\nKernel panic - not syncing\nend");
        assert_eq!(shown, ["one", "Kernel panic - not syncing", "end"]);
    }

    #[test]
    fn escape_sequences_are_disarmed() {
        assert_eq!(lines(b"\x1b[31mred\n\n"), ["[31mred"]);
    }
}
